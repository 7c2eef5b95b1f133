"""An optimizer step as a pure function, and the training state."""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from optax import GradientTransformation as Optimizer

from l2l_jax.methods.base import Objective
from l2l_jax.models.base import Params
from l2l_jax.train import sharding
from l2l_jax.train.optim import TrainingConfig, learning_rate_schedule
from l2l_jax.train.parallel import Parallel


@flax.struct.dataclass
class TrainState:
    """The training state, which holds only trained parts."""

    step: jax.Array  # int32 scalar, number of completed optimizer steps
    params: Params  # trained parts, float32
    opt_state: Any  # optax state of the trained parts
    ema: Params | None  # moving average of `params`, or None
    alpha: jax.Array  # float32 scalar, weight of the forget term; a retain budget adapts it between steps
    # Boolean masks of the shapes of `params`: True for the weights that may change; None: all may change
    mask: Params | None = None

    @property
    def result(self) -> Params:
        """Return the parameters to use after training: the moving average, if there is one."""
        return self.params if self.ema is None else self.ema


# `(state, frozen, batch) -> (state, metrics)`
Step = Callable[[TrainState, Params, dict[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]


def create_state(
    params: Params, optimizer: Optimizer, *, ema: bool, alpha: Any = 0.0, mask: Params | None = None
) -> TrainState:
    """Return the state before the first step; `params` holds the trained parts."""
    average = jax.tree.map(jnp.copy, params) if ema else None  # a copy: state buffers are donated
    start, weight = jnp.zeros((), jnp.int32), jnp.float32(alpha)
    return TrainState(start, params, optimizer.init(params), average, weight, mask)


def abstract_state(
    params: Params, optimizer: Optimizer, mesh: Mesh, *, ema: bool, mask: Params | None = None
) -> TrainState:
    """Return shapes, dtypes and shardings of `placed_state`; `params` and `mask` may be arrays or shapes."""
    create = functools.partial(create_state, optimizer=optimizer, ema=ema)
    return sharding.abstract(jax.eval_shape(create, params, mask=mask), mesh)


def placed_state(
    params: Params,
    optimizer: Optimizer,
    mesh: Mesh,
    *,
    ema: bool,
    alpha: float = 0.0,
    mask: Params | None = None,
) -> TrainState:
    """Return the initial state on the devices; it holds copies of `params`, so it can be donated."""
    arrays = (*sharding.place((params, mask), mesh), jnp.float32(alpha))
    return _placed_state(*arrays, optimizer=optimizer, mesh=mesh, ema=ema)


@functools.partial(jax.jit, static_argnames=("optimizer", "mesh", "ema"))
def _placed_state(params, mask, alpha, *, optimizer, mesh, ema):
    state = create_state(params, optimizer, ema=ema, alpha=alpha, mask=mask)
    return jax.lax.with_sharding_constraint(state, sharding.parameter_shardings(state, mesh))


def scaled_pixels(batch: Any, value_range: tuple[float, float]) -> Any:
    """Scale the uint8 arrays of a tree to `value_range` in float32; leave other arrays unchanged."""
    low, high = value_range

    def leaf(x):
        if x.dtype != jnp.uint8:
            return x
        return x.astype(jnp.float32) * jnp.float32((high - low) / 255) + jnp.float32(low)

    return jax.tree.map(leaf, batch)


def make_step(
    objective: Objective,
    optimizer: Optimizer,
    config: TrainingConfig,
    parallel: Parallel,
    *,
    seed: int,
    value_range: tuple[float, float] = (0.0, 1.0),
) -> Step:
    """Return the step function of an objective, for `parallel.compile`.

    The key of a step is `seed` with the step number folded in, so a resumed run is identical to an
    uninterrupted run. With `config.accumulate` > 1, the whole batch is drawn and corrupted at once; loss and
    gradient are then computed on that many interleaved parts of its rows.

    Args:
      objective: Training objective.
      optimizer: Optimizer that turns gradients into updates.
      config: Config of the accumulation, the moving average, and the schedule for the metrics.
      parallel: Communication between devices.
      seed: Random seed.
      value_range: Range to which uint8 images are scaled; other images are in the model's range.

    Returns:
      A `Step`; its metrics are "loss", the objective's terms, "grad_norm" (before clipping) and the
      "learning_rate" of the update.
    """
    schedule = learning_rate_schedule(config)

    def step(state, frozen, batch):
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        # Cast before gathering, which halves the communicated bytes.
        trained, frozen = parallel.gather((objective.cast(state.params), objective.cast(frozen)))
        inputs = objective.prepare(frozen, scaled_pixels(batch, value_range), rng, parallel.axis_name)

        def grad_fn(part):
            terms, gradients = objective.gradients(trained, frozen, part, state.alpha, parallel.mean)
            wide = {
                name: jax.tree.map(lambda grad, param: grad.astype(param.dtype), gradient, state.params)
                for name, gradient in gradients.items()
            }
            return terms, parallel.scatter(wide)

        terms, gradients = parallel.mean(accumulated(grad_fn, inputs, config.accumulate))
        grads = objective.direction(terms, gradients, state.alpha)
        grads = _where(state.mask, grads, jax.tree.map(jnp.zeros_like, grads))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = _where(state.mask, optax.apply_updates(state.params, updates), state.params)
        ema = state.ema
        if ema is not None:
            ema = _where(state.mask, optax.incremental_update(params, ema, 1 - config.ema_decay), ema)
        rate = jnp.asarray(schedule(state.step), jnp.float32)
        metrics = {**terms, "grad_norm": optax.tree.norm(grads), "learning_rate": rate}
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state, ema=ema), metrics

    return step


def _where(mask: Params | None, new: Params, old: Params) -> Params:
    """Return `new` where weights may change, otherwise `old`, which decay and rounding would change."""
    return new if mask is None else jax.tree.map(jnp.where, mask, new, old)


def accumulated(grad_fn: Callable[[Any], Any], inputs: Any, parts: int) -> Any:
    """Return the mean of `grad_fn` over `parts` interleaved parts of the rows.

    Row i is in part i mod parts, so each part of a sharded batch is evenly sharded over the devices.
    `optax.microbatching` splits in the same way but does not support sets of different sizes, as in "undo"
    (`forget_every`).
    """
    if parts == 1:
        return grad_fn(inputs)

    def add(total, part):
        return jax.tree.map(jnp.add, total, grad_fn(part)), None

    split = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), inputs)
    shapes = jax.eval_shape(grad_fn, jax.tree.map(lambda x: x[0], split))
    total, _ = jax.lax.scan(add, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), split)
    return jax.tree.map(lambda x: x / parts, total)
