"""Rematerialisation: the same numbers from less memory."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from l2l_jax.methods import METHODS
from tests.matrix import soak
from tests.train.families import MODELS, images_of, params_of

DEEPER = {"mae": dict(depth=2, decoder_depth=2), "palette": dict(res_blocks=2)}
OPTIONS = {"xla_disable_hlo_passes": "cse_barrier_expander"}
"""On CPU, XLA removes the barriers that keep it from doing early what is to be done late, as GPUs and TPUs
do it; without that pass its memory shows what they save."""


@pytest.mark.parametrize("family", ["mae", soak("palette")])
def test_remat_needs_less_memory_for_the_same_gradients(family):
    """Encoder and decoder: "max_loss" trains both.

    MAGE's blocks are those of MAE; Palette's are compared with remat in soak alone.
    """
    (batch,) = images_of(family, 1, 32)
    params = params_of(dataclasses.replace(MODELS[family], **DEEPER[family]))
    results, inputs = {}, None
    for remat in (False, True):
        model = dataclasses.replace(MODELS[family], **DEEPER[family], remat=remat)
        objective = METHODS["max_loss"]().objective(model)
        trained = {part: params[part] for part in objective.trained}
        frozen = {part: params[part] for part in objective.frozen}
        inputs = inputs or jax.jit(objective.prepare)(frozen, batch, jax.random.key(0))
        grad_fn = jax.jit(jax.value_and_grad(functools.partial(objective.loss, alpha=0.5), has_aux=True))
        compiled = grad_fn.lower(trained, frozen, inputs).compile(OPTIONS)
        memory = compiled.memory_analysis().temp_size_in_bytes
        results[remat] = jax.device_get(compiled(trained, frozen, inputs)), memory
    (plain, plain_memory), (again, less_memory) = results[False], results[True]
    assert less_memory < 0.8 * plain_memory
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), plain, again)
