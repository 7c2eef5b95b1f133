"""Means over batches at the original weights, and the weights that `saliency` selects."""

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

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
    weights.
    """
    objective = training.objective
    trained = {part: training.run.params[part] for part in objective.trained}

    def gradient(trained, frozen, rows, _):
        return objective.term_gradient("forget", trained, frozen, rows)[1]

    return largest(mean_over_batches(training, trained, gradient, BATCHES, seed=seed)({}), objective.saliency)


def mean_over_batches(
    training: "Training", trained: Params, compute: Callable[..., Params], batches: int, *, seed: int
) -> Callable[[Any], Params]:
    """Return `argument -> mean over batches of compute(trained, frozen, rows, argument)`, on the host.

    Results have the shapes of `trained`. The batches are those of the first steps, with the keys of these
    steps, read by an iterator of their own at the first call; the argument is a tree of host arrays.
    """
    run, objective, parallel = training.run, training.objective, training.parallel
    read: list[Any] = []
    compiled: list[Any] = []

    def add(state, frozen, batch):
        number, params, argument, total = state
        rng = jax.random.fold_in(jax.random.key(seed), number)
        params_, argument_, frozen = parallel.gather((params, argument, frozen))
        pixels = scaled_pixels(batch, run.batches.value_range)
        inputs = objective.prepare(frozen, pixels, rng, parallel.axis_name)

        def one(rows):
            return parallel.scatter(compute(params_, frozen, rows, argument_))

        added = parallel.mean(accumulated(one, inputs, training.config.accumulate))
        return (number + 1, params, argument, jax.tree.map(jnp.add, total, added)), {}

    def mean(argument: Any) -> Params:
        zeros = jax.tree.map(np.zeros_like, trained)
        # The number is placed as well: from elsewhere than where a step leaves it, a step is compiled twice.
        state = sharding.place((np.zeros((), np.int32), trained, argument, zeros), parallel.mesh)
        if not read:
            compiled.append(parallel.compile(add, state))
            with contextlib.closing(iter(run.batches)) as iterator:
                read.extend(parallel.rows(next(iterator)) for _ in range(batches))
        for batch in read:
            state, _ = compiled[0](state, training.frozen, batch)
        return jax.tree.map(lambda x: x / batches, to_host(state[3]))

    return mean
