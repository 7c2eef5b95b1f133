"""Blocks in a loop: the parameters and the numbers of blocks one after the other, from a smaller program."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from l2l_jax.methods import METHODS
from tests.matrix import soak
from tests.train.families import MODELS, images_of, params_of

DEEP = dict(depth=3, decoder_depth=3)


@pytest.mark.parametrize(
    ("family", "remats"), [("mae", (False,)), soak("mae", (False, True)), soak("mage", (False, True))]
)
def test_the_loop_gives_the_same_gradients(family, remats):
    """Encoder and decoder ("max_loss" trains both), with and without remat.

    MAGE's blocks are those of MAE; test_published_recipes.py trains it in the loop in every run, and
    training/test_remat.py has remat.
    """
    (batch,) = images_of(family, 1, 8)
    results, sizes, inputs = {}, {}, None
    deep = dataclasses.replace(MODELS[family], **DEEP)
    params = params_of(deep)
    loops = [(True, remat) for remat in remats]
    for scan, remat in ((False, False), *loops):
        model = dataclasses.replace(deep, scan=scan, remat=remat)
        shapes = model.shapes()
        assert jax.tree.structure(shapes) == jax.tree.structure(params)  # on disk they are the same
        task = METHODS["max_loss"]().objective(model)
        trained = {part: params[part] for part in task.trained}
        frozen = {part: params[part] for part in task.frozen}
        inputs = inputs or jax.jit(task.prepare)(frozen, batch, jax.random.key(0))
        grad_fn = jax.jit(jax.value_and_grad(functools.partial(task.loss, alpha=0.5), has_aux=True))
        compiled = grad_fn.lower(trained, frozen, inputs).compile()
        results[scan, remat] = jax.device_get(compiled(trained, frozen, inputs))
        sizes[scan, remat] = compiled.as_text().count(" dot(")
    for looped in loops:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            results[looped],
            results[False, False],
        )
        assert sizes[looped] < sizes[False, False] / 2
