"""Errors measured during training match NumPy on any device layout."""

import jax
import numpy as np
import pytest

from l2l_jax.evals.metrics import masked_mse
from l2l_jax.train import sharding
from l2l_jax.train.parallel import make_parallel
from l2l_jax.train.sharding import MeshConfig
from l2l_jax.train.validation_errors import MaskedErrors

MASK = np.zeros((8, 8), bool)
MASK[2:6, 2:6] = True
LAYOUTS = {"1x1": ("jit", 1, 1), "2x2": ("jit", 2, 2), "pmap": ("pmap", 4, 1)}


class Blurred:
    """A model that reconstructs an image as the mean of its pixels plus a random number per image."""

    @staticmethod
    def inpaint(params, images, mask, rng):
        noise = jax.random.normal(rng, images.shape)
        return params["gain"] * images.mean(axis=(1, 2), keepdims=True) + 0 * images + noise


@pytest.mark.parametrize("layout", LAYOUTS)
def test_errors_match_numpy_on_any_layout(layout):
    kind, data, model = LAYOUTS[layout]
    rng = np.random.default_rng(0)
    images = {split: rng.random((n, 8, 8, 3), np.float32) for split, n in {"retain": 7, "forget": 6}.items()}
    mesh = sharding.make_mesh(jax.devices()[: data * model], MeshConfig(data, model))
    errors = MaskedErrors(Blurred, MASK, images, rows=8, seed=5, parallel=make_parallel(mesh, kind))
    params = sharding.place({"gain": np.float32(0.7)}, mesh)
    result = errors.finish(errors.start(params))
    keys = iter(jax.vmap(lambda n: jax.random.fold_in(jax.random.key(5), n))(np.arange(13)))
    for split, originals in images.items():
        noise = np.stack([jax.random.normal(next(keys), (1, 8, 8, 3))[0] for _ in originals])
        restored = 0.7 * originals.mean(axis=(1, 2), keepdims=True) + noise
        np.testing.assert_allclose(result[split], masked_mse(originals, restored, MASK), rtol=1e-5)
