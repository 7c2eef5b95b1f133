"""Scanned and rematerialized blocks: equal results, smaller programs, less memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.matrix import soak
from tests.train.families import MODELS, images_of, params_of

BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}
"""On CPU, XLA removes the barriers that prevent early recomputation; GPUs and TPUs keep
them. Without that pass, the memory on CPU shows the savings."""


def corrupted(family, params, rows=8):
    """Return encoder inputs; for latent diffusion, arrays with the shapes of latents."""
    if family == "latent_diffusion":
        latents = np.random.default_rng(0).standard_normal((rows, 4, 4, 9), np.float32)
        words = params["prompts"]["words"][np.arange(rows) % 2]
        return {"inputs": latents, "timesteps": 99 * np.arange(rows), "prompt": words}
    (batch,) = images_of(family, 1, rows)
    return jax.jit(MODELS[family].corrupt)(params, batch["retain"], jax.random.key(0))


def gradients(model, params, inputs, options=None):
    """Return a scalar that depends on all features, its gradient for the encoder, and the program."""

    def value(encoder):
        return sum(jnp.square(x).mean() for x in jax.tree.leaves(model.encode(encoder, inputs)))

    compiled = jax.jit(jax.value_and_grad(value)).lower(params["encoder"]).compile(options)
    return jax.device_get(compiled(params["encoder"])), compiled


def close(found, expected):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), found, expected)


DEEP = {"mae": dict(depth=3), "mage": dict(depth=3)}
UNET = MODELS["latent_diffusion"].unet
DEEP["latent_diffusion"] = dict(unet=dataclasses.replace(UNET, transformer_layers=(3,)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "remats"),
    [("mae", (False,)), ("latent_diffusion", (True,))]
    + [soak(family, (False, True)) for family in ("mae", "mage", "latent_diffusion")],
)
def test_scan_gives_the_same_gradients(family, remats):
    """MAGE has the blocks of MAE; test_published_configs.py trains it with scan in every run."""
    deep = MODELS[family].replace(**DEEP[family])
    params = params_of(deep)
    inputs = corrupted(family, params)
    expected, plain = gradients(deep, params, inputs)
    for remat in remats:
        model = deep.replace(scan=True, remat=remat)
        assert jax.tree.structure(model.shapes()) == jax.tree.structure(params)  # the same when stored
        actual, looped = gradients(model, params, inputs)
        close(actual, expected)
        assert looped.as_text().count(" dot(") < 0.7 * plain.as_text().count(" dot(")  # two blocks, not four


DEEPER = {"mae": dict(depth=3), "palette": dict(res_blocks=2)}
DEEPER["latent_diffusion"] = {}


@pytest.mark.parametrize("family", ["mae", soak("palette"), soak("latent_diffusion")])
def test_remat_needs_less_memory_for_the_same_gradients(family):
    """MAGE has the blocks of MAE; those of U-Nets are compared only in soak tests."""
    model = MODELS[family].replace(**DEEPER[family])
    params = params_of(model)
    inputs = corrupted(family, params, 32)
    (plain, full), (again, less) = (
        gradients(model.replace(remat=remat), params, inputs, BARRIERS) for remat in (False, True)
    )
    memory = [program.memory_analysis().temp_size_in_bytes for program in (full, less)]
    assert memory[1] < 0.8 * memory[0]
    close(again, plain)
