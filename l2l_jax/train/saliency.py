"""Means over batches at the original weights, and selection of salient weights."""

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

BATCHES = 16  # number of batches to average the forget gradient over; each costs as much as a step


def salient_weights(training: "Training", *, seed: int) -> Params:
    """Return boolean masks for the trained parts, on the host: True for the weights that may change.

    These are the share `objective.saliency` of weights with the largest gradients of the forget loss, at the
    original weights.
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

    Results have the shapes of `trained`. The batches and random keys are those of the first steps; they are
    read by a separate iterator at the first call. The argument is a tree of host arrays.
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
        # The number is placed as well: if its sharding differed from a step's output, it would compile twice.
        state = sharding.place((np.zeros((), np.int32), trained, argument, zeros), parallel.mesh)
        if not read:
            compiled.append(parallel.compile(add, state))
            with contextlib.closing(iter(run.batches)) as iterator:
                read.extend(parallel.rows(next(iterator)) for _ in range(batches))
        for batch in read:
            state, _ = compiled[0](state, training.frozen, batch)
        return jax.tree.map(lambda x: x / batches, to_host(state[3]))

    return mean
