"""Methods that train only an adapter."""

import jax
import numpy as np
import pytest

from l2l_jax.methods import METHODS
from l2l_jax.methods.encoder import Encoder
from l2l_jax.methods.restrictions import adapt, restrict
from l2l_jax.methods.undo import Undo
from l2l_jax.models.adapters import ADAPTER, adapted, merged
from tests.fixtures.steps import prepared, step
from tests.matrix import soak
from tests.train.families import MODELS, images_of, params_of


def test_incompatible_options_are_rejected():
    with pytest.raises(ValueError, match="starts from others"):
        adapt(Undo().objective(MODELS["mae"]), "norms", 8)
    with pytest.raises(ValueError, match="saliency must be 1"):
        adapt(restrict(Encoder().objective(MODELS["mae"]), MODELS["mae"], 0.5), "lora", 8)


def count(tree):
    return sum(np.size(x) for x in jax.tree.leaves(tree))


def test_number_of_trained_parameters():
    """MAE with 1 block of width 32 in encoder and decoder, patches of 4·4·3 = 48 numbers, rank 2.

    Each block has qkv, proj, fc1 and fc2; in addition, an embedding, and the decoder's first and last layer.
    """
    block = 2 * (32 + 96) + 2 * (32 + 32) + 4 * (32 + 128)
    encoder = block + 2 * (48 + 32)
    both = encoder + block + 2 * (32 + 32) + 2 * (32 + 48)
    expected = {("encoder", "lora"): encoder, ("whole", "lora"): both}
    expected |= {("encoder", "norms"): 3 * 64, ("whole", "norms"): 6 * 64}
    params = params_of(MODELS["mae"])
    for (method, kind), numbers in expected.items():
        objective = adapt(METHODS[method]().objective(MODELS["mae"]), kind, 2)
        assert objective.trained == (ADAPTER,)
        assert count(objective.initial(params, jax.random.key(0))) == numbers


CELLS = [
    ("relearn_aware", "mae"),
    *(soak(*cell) for cell in [("encoder", "palette"), ("whole", "mage"), ("encoder", "latent_diffusion")]),
]
"""An adapter requires only that a method accepts weights, also those of a look-ahead, and that a family has
kernels; models/test_adapters.py covers all kinds of kernels."""


@pytest.mark.slow
@pytest.mark.parametrize(("method", "family"), CELLS)
def test_losses_and_gradients_of_every_family(method, family):
    """Initially those of the original model; later those of the merged model, by the chain rule."""
    model, options = MODELS[family], METHODS[method]()
    params, (batch,) = params_of(model), images_of(family, 1, 4)
    plain = options.objective(model)
    objective = adapt(plain, "lora", 2)
    inputs = prepared(plain, params, batch)
    start = jax.device_get(objective.initial(params, jax.random.key(3)))
    moved = jax.tree.map(lambda x: x + np.float32(0.01), start)
    same = jax.jit(adapted)(params, start[ADAPTER])
    jax.tree.map(np.testing.assert_array_equal, same, params)  # bit-exact
    after = merged(params, moved[ADAPTER])
    metrics, gradient = step(objective, moved, params, inputs, 0.5)
    plain_metrics, on_weights = step(plain, after, params, inputs, 0.5)
    for term in ("loss", "retain", "forget"):
        np.testing.assert_allclose(metrics[term], plain_metrics[term], rtol=1e-4)
    checked = 0
    for path, factors in jax.tree_util.tree_leaves_with_path(moved[ADAPTER], is_leaf=lambda x: "down" in x):
        slope, actual = on_weights, gradient[ADAPTER]
        for key in path:
            slope, actual = slope[key.key], actual[key.key]
        slope = np.reshape(np.asarray(slope), (-1, slope.shape[-1])).astype(float)
        for name, expected in (("down", slope @ factors["up"].T), ("up", factors["down"].T @ slope)):
            np.testing.assert_allclose(actual[name], expected, atol=1e-2 * np.abs(expected).max() + 1e-6)
        checked += 1
    assert checked >= 4  # the dense kernels of one block
