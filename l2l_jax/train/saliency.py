"""Which weights a task with `saliency` < 1 may change, measured before its first step."""

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from l2l_jax.data.loader import Batches
from l2l_jax.methods.base import Objective
from l2l_jax.methods.saliency import largest
from l2l_jax.models.base import Params
from l2l_jax.train import sharding
from l2l_jax.train.parallel import Parallel
from l2l_jax.train.step import accumulated, scaled_pixels
from l2l_jax.utils.multihost import to_host

BATCHES = 16
"""Batches over which the forget gradient is averaged; each costs a step."""


def salient_weights(
    task: Objective, params: Params, frozen: Params, batches: Batches, parallel: Parallel, *,
    seed: int, accumulate: int = 1,
) -> Params:  # fmt: skip
    """Tree of bools for the trained parts, as host arrays: True for the weights that may change.

    They are `task.saliency` of all, by the size of the forget loss's gradient at the original weights. The
    batches are those of the first steps, with the keys of these steps.

    Args:
      task: the task.
      params: the original parameters, all parts.
      frozen: `task.frozen`, on the devices.
      batches: read by an iterator of their own.
      parallel: how steps run on the devices.
      seed: seed of the steps.
      accumulate: parts into which a batch is split.
    """
    trained = {part: params[part] for part in task.trained}
    zeros = jax.tree.map(np.zeros_like, trained)
    # The number is placed, too: from elsewhere than where a step leaves it, a step is compiled twice.
    state = sharding.place((np.zeros((), np.int32), trained, zeros), parallel.mesh)
    sums = _gradient_sum(
        task, seed=seed, value_range=batches.value_range, accumulate=accumulate, parallel=parallel
    )
    step = parallel.compile(sums, state)
    with contextlib.closing(iter(batches)) as iterator:
        for _ in range(BATCHES):
            state, _ = step(state, frozen, parallel.rows(next(iterator)))
    mask = jax.jit(functools.partial(largest, share=task.saliency))(state[2])
    return to_host(mask)


def _gradient_sum(
    task: Objective, *, seed: int, value_range: tuple[float, float], accumulate: int, parallel: Parallel
) -> Any:
    """A step that adds the mean forget loss's gradient to a sum; its state is `(number, weights, sum)`."""

    def step(state, frozen, batch):
        number, params, total = state
        rng = jax.random.fold_in(jax.random.key(seed), number)
        trained, frozen = parallel.gather((params, frozen))
        inputs = task.prepare(frozen, scaled_pixels(batch, value_range), rng, parallel.axis_name)

        def gradient(rows):
            return parallel.scatter(task.term_gradient("forget", trained, frozen, rows)[1])

        added = parallel.mean(accumulated(gradient, inputs, accumulate))
        return (number + 1, params, jax.tree.map(jnp.add, total, added)), {}

    return step
