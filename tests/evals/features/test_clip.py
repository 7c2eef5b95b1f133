"""CLIP's vision tower compared with transformers (`clip_tiny`) and open_clip (`open_clip_vit`)."""

import functools
import math

import jax
import numpy as np
import pytest

from l2l_jax.errors import UserError
from l2l_jax.evals.features import clip
from l2l_jax.models import mapping
from tests.matrix import soak
from tests.reference_arrays import Case, nhwc

SIZES = dict(image_size=32, patch_size=8, width=32, depth=2, num_heads=4, mlp_width=64, embed_dim=16)
CASES = {"clip_tiny": Case("clip_tiny"), "open_clip_vit": Case("open_clip_vit")}


@functools.cache
def shapes_of(config):
    image = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), np.float32)
    return jax.eval_shape(clip.Tower(config).init, jax.random.key(0), image)["params"]


def params_of(config, state_dict):
    table = clip.TRANSFORMERS if "vision_model.pre_layrnorm.bias" in state_dict else clip.OPEN_CLIP
    return mapping.to_flax(table, clip.unpack(state_dict), shapes_of(config))


@pytest.mark.parametrize(
    "name, activation", [("clip_tiny", "quick_gelu"), ("open_clip_vit", "gelu"), soak("clip_tiny", "gelu")]
)
def test_tower(name, activation):
    case, config = CASES[name], clip.TowerConfig(**SIZES, activation=activation)
    params = params_of(config, case.state_dict())
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, shapes_of(config))
    apply = jax.jit(lambda p, x: clip.Tower(config).apply({"params": p}, x, mutable=["intermediates"]))
    features, inside = apply(params, nhwc(case["x"]))
    inside = {key: value[0] for key, value in inside["intermediates"].items()}
    if name == "clip_tiny":
        for i, key in enumerate(("embedded", "block_0", "block_1")):
            np.testing.assert_allclose(inside[key], case[f"{activation}/hidden_{i}"], atol=1e-5)
        np.testing.assert_allclose(features, case[f"{activation}/image_embeds"], atol=1e-5)
    else:
        np.testing.assert_allclose(inside["embedded"], case[f"{activation}/embeds"], atol=1e-5)
        np.testing.assert_allclose(features, case[f"{activation}/image_features"], atol=1e-5)


def test_vit_h_14_has_the_published_layout():
    case = CASES["open_clip_vit"]
    keys = case.description["keys_vit_h_14"]
    state_dict = clip.unpack({key: np.broadcast_to(np.float32(0), shape) for key, shape, _ in keys})
    table, name, config = clip.recognize(state_dict)
    assert name == "ViT-H/14"
    facts = case.config["vit_h_14"]
    assert config.num_heads == facts["heads"] and config.width // config.num_heads == facts["head_width"]
    assert mapping.fit(table, state_dict, shapes_of(config)).complaint() is None
    numbers = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes_of(config)))
    assert numbers == case.description["n_params_vit_h_14"]


def test_text_towers_are_ignored():
    state_dict = CASES["clip_tiny"].state_dict()
    texts = {"text_model.embeddings.position_ids": np.zeros((1, 77)), "logit_scale": np.zeros(())}
    params = params_of(clip.TowerConfig(**SIZES, activation="gelu"), state_dict | texts)
    expected = state_dict["vision_model.embeddings.class_embedding"]
    np.testing.assert_array_equal(params["class_token"], expected)


@pytest.mark.parametrize(
    ("state_dict", "said"),
    [
        (CASES["clip_tiny"].state_dict(), "another size.*width 32.*known: ViT-B/32, ViT-H/14"),
        ({"fc.weight": np.zeros((2, 2))}, "not weights of CLIP"),
    ],
)
def test_other_towers_are_rejected(state_dict, said):
    with pytest.raises(UserError, match=said):
        clip.recognize(clip.unpack(state_dict))
