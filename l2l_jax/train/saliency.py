"""The weights that an objective with `saliency` < 1 may change, measured before its first step."""

import contextlib
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from l2l_jax.methods.restrictions import largest
from l2l_jax.models.base import Params
from l2l_jax.train import sharding
from l2l_jax.train.step import accumulated, scaled_pixels
from l2l_jax.utils.multihost import to_host

if TYPE_CHECKING:
    from l2l_jax.train.loop import Training

BATCHES = 16  # batches over which the forget gradient is averaged; each costs a step


def salient_weights(training: "Training", *, seed: int) -> Params:
    """Return a tree of bools for the trained parts, on the host: True for the weights that may change.

    These are a share of `objective.saliency`, by the size of the forget loss's gradient at the original
    weights. The batches are those of the first steps, with the keys of these steps, read by another iterator.
    """
    run, objective, parallel = training.run, training.objective, training.parallel

    def add_gradient(state, frozen, batch):
        number, params, total = state
        rng = jax.random.fold_in(jax.random.key(seed), number)
        trained, frozen = parallel.gather((params, frozen))
        pixels = scaled_pixels(batch, run.batches.value_range)
        inputs = objective.prepare(frozen, pixels, rng, parallel.axis_name)

        def gradient(rows):
            return parallel.scatter(objective.term_gradient("forget", trained, frozen, rows)[1])

        added = parallel.mean(accumulated(gradient, inputs, training.config.accumulate))
        return (number + 1, params, jax.tree.map(jnp.add, total, added)), {}

    trained = {part: run.params[part] for part in objective.trained}
    zeros = jax.tree.map(np.zeros_like, trained)
    # The number is placed as well: from elsewhere than where a step leaves it, a step is compiled twice.
    state = sharding.place((np.zeros((), np.int32), trained, zeros), parallel.mesh)
    step = parallel.compile(add_gradient, state)
    with contextlib.closing(iter(run.batches)) as iterator:
        for _ in range(BATCHES):
            state, _ = step(state, training.frozen, parallel.rows(next(iterator)))
    return largest(to_host(state[2]), objective.saliency)
