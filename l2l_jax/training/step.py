"""One optimiser step as a pure function."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from l2l_jax.models.base import Params
from l2l_jax.objectives.task import Task


@flax.struct.dataclass
class TrainState:
    """Everything that changes while training; only trained parts are here.

    Attributes:
      step: int32 scalar, optimiser steps done.
      params: trained parts, float32.
      opt_state: optax state of the trained parts.
      ema: moving average of `params`, or None.
    """

    step: jax.Array
    params: Params
    opt_state: Any
    ema: Params | None

    @property
    def result(self) -> Params:
        """The parameters to use afterwards: the average, if there is one."""
        return self.params if self.ema is None else self.ema


Step = Callable[[TrainState, Params, dict[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]
"""`(state, frozen, batch) -> (state, metrics)`"""


def create_state(
    params: Params, optimizer: optax.GradientTransformation, *, ema: bool
) -> TrainState:
    """The state before the first step; `params` holds the trained parts."""
    average = jax.tree.map(jnp.copy, params) if ema else None  # a copy: state buffers are donated
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), average)


def make_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    ema_decay: float = 0.0,
    accumulate: int = 1,
) -> Step:
    """The step function of a task, to be jitted with its first argument donated.

    The key of a step is `seed` with the step number folded in, so that a resumed run repeats an
    uninterrupted one. With `accumulate` > 1 the batch is drawn and corrupted whole, then its rows
    go through loss and gradient in that many interleaved parts.

    Returns:
      A `Step`; its metrics are "loss", the task's terms and "grad_norm" (before clipping).
    """

    def step(state, frozen, batch):
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        inputs = task.prepare(frozen, batch, rng)
        value_and_grad = jax.value_and_grad(
            lambda params, part: task.loss(params, frozen, part), has_aux=True
        )
        if accumulate == 1:
            (loss, terms), grads = value_and_grad(state.params, inputs)
        else:
            (loss, terms), grads = _accumulated(value_and_grad, state.params, inputs, accumulate)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = optax.incremental_update(params, ema, 1 - ema_decay)
        metrics = {"loss": loss, **terms, "grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, opt_state, ema), metrics

    return step


def _accumulated(value_and_grad, params, inputs, parts):
    """The mean of `value_and_grad` over `parts` interleaved parts of the rows.

    Row i goes to part i mod parts: a batch sharded over devices stays evenly sharded in each part.
    """

    def split(x):
        return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)

    def add(total, part):
        return jax.tree.map(jnp.add, total, value_and_grad(params, part)), None

    split_inputs = jax.tree.map(split, inputs)
    first = jax.tree.map(lambda x: x[0], split_inputs)
    shapes = jax.eval_shape(value_and_grad, params, first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, split_inputs)
    return jax.tree.map(lambda x: x / parts, total)
