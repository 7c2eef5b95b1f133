"""Blocks in a loop, or computed again in the backward pass: the same numbers, less code, less memory."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from l2l_jax.methods import METHODS
from tests.matrix import soak
from tests.train.families import MODELS, images_of, params_of

BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}
"""On CPU, XLA removes the barriers that keep it from doing early what is to be done late, as GPUs and TPUs
do it; without that pass its memory shows what they save."""


def gradients(model, params, rows=8, options=None):
    """Results and gradients of encoder and decoder ("max_loss" trains both), and the compiled program."""
    (batch,) = images_of(next(name for name in MODELS if isinstance(model, type(MODELS[name]))), 1, rows)
    objective = METHODS["max_loss"]().objective(model)
    trained, frozen = ({part: params[part] for part in of} for of in (objective.trained, objective.frozen))
    inputs = jax.jit(objective.prepare)(frozen, batch, jax.random.key(0))
    grad_fn = jax.jit(jax.value_and_grad(functools.partial(objective.loss, alpha=0.5), has_aux=True))
    compiled = grad_fn.lower(trained, frozen, inputs).compile(options)
    return jax.device_get(compiled(trained, frozen, inputs)), compiled


def close(found, expected):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), found, expected)


DEEP = {"mae": dict(depth=3), "mage": dict(depth=3)}
UNET = MODELS["latent_diffusion"].unet
DEEP["latent_diffusion"] = dict(unet=dataclasses.replace(UNET, transformer_layers=(4,)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "remats"),
    [("mae", (False,)), ("latent_diffusion", (True,))]
    + [soak(family, (False, True)) for family in ("mae", "mage", "latent_diffusion")],
)
def test_the_loop_gives_the_same_gradients(family, remats):
    """MAGE's blocks are those of MAE; test_published_recipes.py trains it in the loop in every run."""
    deep = MODELS[family].replace(**DEEP[family])
    params = params_of(deep)
    expected, plain = gradients(deep, params)
    for remat in remats:
        model = deep.replace(scan=True, remat=remat)
        assert jax.tree.structure(model.shapes()) == jax.tree.structure(params)  # on disk they are the same
        found, looped = gradients(model, params)
        close(found, expected)
        assert looped.as_text().count(" dot(") < 0.7 * plain.as_text().count(" dot(")  # two blocks, not four


DEEPER = {"mae": dict(depth=2, decoder_depth=2), "palette": dict(res_blocks=2)}
DEEPER["latent_diffusion"] = {}


@pytest.mark.parametrize("family", ["mae", soak("palette"), soak("latent_diffusion")])
def test_remat_needs_less_memory_for_the_same_gradients(family):
    """MAGE's blocks are those of MAE; the U-Nets' are compared in soak alone."""
    model = MODELS[family].replace(**DEEPER[family])
    params = params_of(model)
    (plain, whole), (again, less) = (
        gradients(model.replace(remat=remat), params, 32, BARRIERS) for remat in (False, True)
    )
    memory = [program.memory_analysis().temp_size_in_bytes for program in (whole, less)]
    assert memory[1] < 0.8 * memory[0]
    close(again, plain)
