"""Import and export of complete checkpoints, small and at published size."""

import dataclasses
import json
import zlib
from unittest.mock import ANY

import jax
import numpy as np
import pytest
import safetensors.numpy

from l2l_jax import shipped
from l2l_jax.errors import UserError
from l2l_jax.models import mapping
from l2l_jax.models.layers.vit import sincos_position_table
from l2l_jax.models.mae.model import MAE
from l2l_jax.models.mage.model import MAGE
from l2l_jax.models.palette.model import Palette
from l2l_jax.weights import transfer
from l2l_jax.weights.checkpoints import recognize
from l2l_jax.weights.loading import load_model
from l2l_jax.weights.saved_models import read_card
from tests.matrix import soak
from tests.reference_arrays import FOLDER, Case
from tests.weights.checkpoints import SMALL, assert_same_bits, network, write_safetensors


@pytest.mark.parametrize("name", SMALL)
def test_small_cases_round_trip_bit_exactly(imported, tmp_path, name):
    card = read_card(imported / name)
    assert (card["family"], card["variant"], card["source"]["file"]) == (name, None, f"{name}.safetensors")
    assert card["licence"] == "See where the file comes from."
    with pytest.raises(UserError, match="exists"):
        transfer.import_checkpoint(imported / f"{name}.safetensors", imported / name)
    transfer.export_model(imported / name, tmp_path / "out.safetensors")
    exported = safetensors.numpy.load_file(tmp_path / "out.safetensors")
    assert_same_bits(exported, SMALL[name].state_dict)


@pytest.mark.parametrize("prefix", ["mae_model.", "net.module."])
def test_common_key_prefix_is_ignored(prefix):
    recognized = recognize({prefix + key: x for key, x in MAE_STATE.items()}, {"file": "x"})
    assert recognized.family == "mae" and recognized.state_dict == MAE_STATE


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(tmp_path, dtype):
    """It is converted to float32 and back without loss; training-only networks are omitted and named."""
    half = {key: value.astype(mapping.FLOATS[dtype]) for key, value in SMALL["mae"].state_dict.items()}
    more = {f"model.{k}": x for k, x in half.items()} | {"model.perceptual.net.0.weight": half["norm.bias"]}
    path = write_safetensors(tmp_path / "half.safetensors", more)
    card = transfer.import_checkpoint(path, tmp_path / "model", fields=SMALL["mae"].given)
    assert card["source"]["left_out"] == "1 arrays: perceptual.net.0.weight"
    transfer.export_model(tmp_path / "model", tmp_path / "out.safetensors", dtype)
    assert_same_bits(safetensors.numpy.load_file(tmp_path / "out.safetensors"), half)
    bias = load_model(tmp_path / "model")[1]["encoder"]["norm"]["bias"]
    np.testing.assert_array_equal(bias, half["norm.bias"].astype(np.float32), strict=True)


def test_vqgan_in_a_second_file(tmp_path):
    both = SMALL["mage"].state_dict
    mage = {key: value for key, value in both.items() if not key.startswith("vqgan.")}
    vqgan = {key.removeprefix("vqgan."): v for key, v in both.items() if key.startswith("vqgan.")}
    vqgan["loss.discriminator.main.0.weight"] = np.zeros((2, 2), np.float32)
    first, second, complete = (
        write_safetensors(tmp_path / f"{name}.safetensors", state)
        for name, state in (("mage", mage), ("vqgan", vqgan), ("both", both))
    )
    for path, other, message in (
        (first, None, "--vqgan"),
        (second, None, "VQGAN alone"),
        (complete, second, "already"),
    ):
        with pytest.raises(UserError, match=message):
            transfer.import_checkpoint(path, tmp_path / "model", vqgan=other, fields=SMALL["mage"].given)
    card = transfer.import_checkpoint(first, tmp_path / "model", vqgan=second, fields=SMALL["mage"].given)
    assert card["source"]["vqgan"]["file"] == "vqgan.safetensors"
    transfer.export_model(tmp_path / "model", tmp_path / "out.safetensors")
    assert_same_bits(safetensors.numpy.load_file(tmp_path / "out.safetensors"), both)


def test_u_net_alone_and_network_with_teacher():
    complete = SMALL["palette"].state_dict
    unet = Case("palette_unet_tiny").state_dict()
    teacher = {f"teacher_denoise_fn.{key}": np.zeros_like(value) for key, value in unet.items()}
    for state_dict in (unet, complete | teacher):
        recognized = recognize(state_dict, {"file": "x"})
        model, _ = recognized.model(SMALL["palette"].given)
        assert_same_bits(mapping.to_torch(recognized.format.table, recognized.params(model), model), complete)


MAE_STATE, HEADS = SMALL["mae"].state_dict, SMALL["mae"].given
ENCODER = {k: v for k, v in MAE_STATE.items() if "decoder" not in k and k != "mask_token"}
FORMATS = "expected float32, float16, bfloat16"
NOT_FINITE = r"encoder/norm/bias holds NaN or infinite values \(48 of 48\)"


@pytest.mark.parametrize(
    "state_dict, fields, message",
    [
        (MAE_STATE | {"norm.bias": np.zeros(48)}, HEADS, FORMATS),
        (MAE_STATE | {"norm.bias": np.zeros(48, np.int64)}, HEADS, FORMATS),
        (MAE_STATE | {"norm.bias": np.full(48, np.nan, np.float32)}, HEADS, NOT_FINITE),
        (MAE_STATE | {"norm.bias": np.full(48, -np.inf, np.float32)}, HEADS, NOT_FINITE),
        (MAE_STATE | {"pos_embed": np.nan * MAE_STATE["pos_embed"]}, HEADS, "pos_embed holds NaN"),
        ({f"net.{key}": x for key, x in ENCODER.items()}, HEADS, "the keys are net.blocks.0"),
        (ENCODER, HEADS, "without a decoder.*mae_visualize_vit_large.pth"),
        (MAE_STATE, {"width": 7}, "width is 48 in the weights"),
        (MAE_STATE, {"num_heads": 4}, "add --set decoder_num_heads"),
        (MAE_STATE, {"num_heads": 5, "decoder_num_heads": 4}, "heads"),
        (MAE_STATE, {**HEADS, "heads": 4}, "no field heads"),
        (MAE_STATE, {**HEADS, "num_heads": "four"}, "num_heads"),
    ],
)
def test_failed_import_writes_nothing(tmp_path, state_dict, fields, message):
    path = write_safetensors(tmp_path / "x.safetensors", state_dict)
    with pytest.raises(UserError, match=message):
        transfer.import_checkpoint(path, tmp_path / "model", fields=fields)
    assert list(tmp_path.iterdir()) == [path]


DRAWN = np.random.default_rng(0).standard_normal(2**17, np.float32)
STEPS = (1, 2, 3, 5)
"""Strides in `DRAWN` along each axis, all different to distinguish the axes."""


def numbers(key, shape):
    """Return distinct values of a large parameter without memory: [i, j] is the value i + 2 j of a row."""
    first, steps = zlib.crc32(key.encode()) % 2**16, STEPS[: len(shape)]
    assert first + np.dot(np.subtract(shape, 1), steps) < len(DRAWN)  # stay within its memory
    strides = [step * DRAWN.itemsize for step in steps]
    return np.lib.stride_tricks.as_strided(DRAWN[first:], shape, strides, writeable=False)


def unread(key, shape):
    """Stand in for an array of which only the shape matters."""
    return np.broadcast_to(np.float32(0), shape)


def published(name, fill):
    """Return the state dict of a published layout; `fill(key, shape)` creates arrays except constants."""
    layout = json.loads((FOLDER / f"layouts/{name}.json").read_text())["state_dict"]
    grid = 16 if name.startswith("mage") else 14
    shapes = {key: shape for key, shape, _ in layout}
    fixed = {
        key: sincos_position_table(shapes[key][2], grid)[None]
        for key in ("pos_embed", "decoder_pos_embed")
        if key in shapes
    }
    if "token_emb.position_ids" in shapes:
        fixed["token_emb.position_ids"] = np.arange(257)[None]
    state_dict = {key: fixed[key] if key in fixed else fill(key, shape) for key, shape in shapes.items()}
    return network(state_dict) if name.startswith("palette") else state_dict


IMAGENET = dict(pixel_mean=(0.485, 0.456, 0.406), pixel_std=(0.229, 0.224, 0.225))
PUBLISHED = {
    "mae_vit_base_patch16": MAE(**IMAGENET),
    "mae_vit_large_patch16": MAE(width=1024, depth=24, num_heads=16, **IMAGENET),
    "mage_vit_base_patch16": MAGE(),
    "palette_unet": Palette(attn_res=()),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_layouts_are_recognized(name):
    recognized = recognize(published(name, unread), {"file": f"{name}.pth"})
    assert recognized.variant() in recognized.format.published
    assert recognized.model({}) == (PUBLISHED[name], ANY)


# Recognition of the others is tested in every run, and so is the round trip of their small cases.
@pytest.mark.parametrize("name", [n if n == "mae_vit_base_patch16" else soak(n) for n in PUBLISHED])
def test_published_layouts_round_trip(name):
    state_dict, model = published(name, numbers), PUBLISHED[name]
    recognized = recognize(state_dict, {"file": f"{name}.pth"})
    exported = mapping.to_torch(recognized.format.table, recognized.params(model), model)
    assert exported.keys() == state_dict.keys()
    for key, value in state_dict.items():
        assert (exported[key].dtype, exported[key].shape) == (value.dtype, value.shape), key
        assert np.array_equal(exported[key], value), key


@pytest.mark.parametrize(
    "name, normalized, licensed",
    [
        ("mae_pretrain_vit_base_full.pth", True, True),
        ("mae_pretrain_vit_huge_full.safetensors", True, True),
        ("mae_visualize_vit_large_ganloss.pth", False, True),
        ("mine.pth", False, False),
    ],
)
def test_mae_file_names_determine_the_training_target(name, normalized, licensed):
    recognized = recognize(published("mae_vit_base_patch16", unread), {"file": name})
    model, assumed = recognized.model({})
    assert model.norm_pix_loss is normalized and assumed["norm_pix_loss"] is normalized
    assert ("CC BY-NC 4.0" in recognized.licence) == licensed


def test_vqgan_without_residual_blocks(tmp_path):
    """As in the digits config: only the number of levels and the last width can be inferred and matter."""
    model, params = load_model("digits_vqgan")
    given = {name: getattr(model, name) for name in ("num_heads", "decoder_num_heads", "groups")}
    transfer.import_checkpoint(shipped.resolved("digits_vqgan"), tmp_path / "model", fields=given)
    again, weights = load_model(tmp_path / "model")
    assert model.num_res_blocks == 0 and again.canonical() == dataclasses.replace(
        again.canonical(), channel_multipliers=model.canonical().channel_multipliers
    )
    assert again.image_size == model.image_size
    jax.tree.map(np.testing.assert_array_equal, weights, params)
