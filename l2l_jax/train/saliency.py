"""The weights that an objective with `saliency` < 1 may change, measured before its first step."""

import contextlib

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
    objective: Objective,
    params: Params,
    frozen: Params,
    batches: Batches,
    parallel: Parallel,
    *,
    seed: int,
    accumulate: int = 1,
) -> Params:
    """Return a tree of bools for the trained parts, on the host: True for the weights that may change.

    These are a share of `objective.saliency`, by the size of the forget loss's gradient at the original
    weights. The batches are those of the first steps, with the keys of these steps.

    Args:
      objective: The objective.
      params: The original parameters, all parts.
      frozen: The objective's frozen parts, on the devices.
      batches: Read by an iterator of their own.
      parallel: How steps run on the devices.
      seed: Random seed of the steps.
      accumulate: Parts that a batch is split into.
    """
    value_range = batches.value_range

    def add_gradient(state, frozen, batch):
        number, params, total = state
        rng = jax.random.fold_in(jax.random.key(seed), number)
        trained, frozen = parallel.gather((params, frozen))
        inputs = objective.prepare(frozen, scaled_pixels(batch, value_range), rng, parallel.axis_name)

        def gradient(rows):
            return parallel.scatter(objective.term_gradient("forget", trained, frozen, rows)[1])

        added = parallel.mean(accumulated(gradient, inputs, accumulate))
        return (number + 1, params, jax.tree.map(jnp.add, total, added)), {}

    trained = {part: params[part] for part in objective.trained}
    zeros = jax.tree.map(np.zeros_like, trained)
    # The number is placed as well: from elsewhere than where a step leaves it, a step is compiled twice.
    state = sharding.place((np.zeros((), np.int32), trained, zeros), parallel.mesh)
    step = parallel.compile(add_gradient, state)
    with contextlib.closing(iter(batches)) as iterator:
        for _ in range(BATCHES):
            state, _ = step(state, frozen, parallel.rows(next(iterator)))
    return largest(to_host(state[2]), objective.saliency)
