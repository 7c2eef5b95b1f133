"""Errors measured while training: those of NumPy, on any layout of devices."""

import jax
import numpy as np
import pytest

from l2l_jax.evals.metrics import masked_mse
from l2l_jax.train import sharding
from l2l_jax.train.parallel import make_parallel
from l2l_jax.train.sharding import MeshConfig
from l2l_jax.train.validation_errors import MaskedErrors
from tests.train import toy
from tests.train.families import MODELS, params_of

MASK = np.zeros((8, 8), bool)
MASK[2:6, 2:6] = True
LAYOUTS = {"1x1": ("jit", 1, 1), "2x2": ("jit", 2, 2), "pmap": ("pmap", 4, 1)}


class Blurred:
    """Restores an image as the mean of its pixels and a random number of its own."""

    @staticmethod
    def inpaint(params, images, mask, rng):
        noise = jax.random.normal(rng, images.shape)
        return params["gain"] * images.mean(axis=(1, 2), keepdims=True) + 0 * images + noise


@pytest.mark.parametrize("layout", LAYOUTS)
def test_errors_are_those_of_numpy_whatever_the_layout(layout):
    kind, data, model = LAYOUTS[layout]
    rng = np.random.default_rng(0)
    images = {of: rng.random((n, 8, 8, 3), np.float32) for of, n in {"retain": 7, "forget": 6}.items()}
    mesh = sharding.make_mesh(jax.devices()[: data * model], MeshConfig(data, model))
    errors = MaskedErrors(Blurred, MASK, images, rows=8, seed=5, parallel=make_parallel(mesh, kind))
    params = sharding.place({"gain": np.float32(0.7)}, mesh)
    found = errors.finish(errors.start(params))
    keys = iter(jax.vmap(lambda n: jax.random.fold_in(jax.random.key(5), n))(np.arange(13)))
    for of, originals in images.items():
        noise = np.stack([jax.random.normal(next(keys), (1, 8, 8, 3))[0] for _ in originals])
        restored = 0.7 * originals.mean(axis=(1, 2), keepdims=True) + noise
        np.testing.assert_allclose(found[of], masked_mse(originals, restored, MASK), rtol=1e-5)


def test_a_model_of_a_family_is_measured_as_it_restores():
    """One at a time under `vmap` is the same as all at once."""
    model, params = MODELS["mae"], params_of(MODELS["mae"])
    images = {"retain": np.random.default_rng(0).random((5, 8, 8, 3), np.float32)}
    parallel = make_parallel(sharding.make_mesh(jax.devices()[:1]), "jit")
    mask = np.arange(8)[:, None] >= np.full(8, 4)  # the lower half: whole patches
    errors = MaskedErrors(model, mask, images, rows=4, seed=0, parallel=parallel)
    inpaint = jax.jit(lambda params, images: model.inpaint(params, images, mask, jax.random.key(0)))
    restored = inpaint(params, images["retain"])
    expected = masked_mse(images["retain"], np.asarray(restored), mask)
    np.testing.assert_allclose(errors.finish(errors.start(params))["retain"], expected, rtol=1e-4)


def test_an_adapter_is_added_before_restoring():
    images = {"retain": np.random.default_rng(0).random((3, 8, 8, 3), np.float32)}
    parallel = make_parallel(sharding.make_mesh(jax.devices()[:1]), "jit")
    errors = MaskedErrors(toy.Gain, MASK, images, rows=4, seed=0, parallel=parallel)
    adapter = {"encoder": {"gain": {"delta": np.float32(0.2)}}}
    params = {"encoder": {"gain": np.float32(0.5)}, "adapter": adapter}
    expected = masked_mse(images["retain"], np.float32(0.7) * images["retain"], MASK)
    np.testing.assert_allclose(errors.finish(errors.start(params))["retain"], expected, rtol=1e-4)
