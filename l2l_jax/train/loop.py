"""The training loop of one stage: resume, step, report, save."""

import contextlib
import logging
import math
import pathlib
import threading
from collections.abc import Callable, Collection, Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from l2l_jax.data.loader import Batches
from l2l_jax.errors import Diverged, Interrupted
from l2l_jax.methods.base import Task
from l2l_jax.models.base import Params
from l2l_jax.train import sharding
from l2l_jax.train.budget import RetainBudget
from l2l_jax.train.checkpoint import Checkpointer
from l2l_jax.train.metric_writers import MetricWriter
from l2l_jax.train.optim import TrainingConfig, learning_rate_schedule, make_optimizer
from l2l_jax.train.parallel import ParallelKind, make_parallel
from l2l_jax.train.saliency import salient_weights
from l2l_jax.train.step import Step, TrainState, abstract_state, make_step, placed_state
from l2l_jax.train.stopping import stop_request
from l2l_jax.utils.multihost import barrier, to_host
from l2l_jax.utils.progress import Progress

logger = logging.getLogger(__name__)


def train(
    name: str,
    task: Task,
    params: Params,
    batches: Batches,
    config: TrainingConfig,
    folder: pathlib.Path,
    *,
    seed: int,
    mesh: Mesh,
    parallel: ParallelKind = "jit",
    alpha: float = 0.0,
    budget: RetainBudget | None = None,
    teacher: Params | None = None,
) -> Params:
    """Train a task once: what a `Trainer` of these arguments makes of `params`."""
    trainer = Trainer(name, task, config, seed=seed, mesh=mesh, parallel=parallel)
    return trainer.train(params, batches, folder, alpha=alpha, budget=budget, teacher=teacher)


Observe = Callable[[int, Params], None]
"""`(steps done, all parameters as host arrays)`, called by all processes."""


class Trainer:
    """The step of a task, compiled once for any number of models of the same shapes, also in several threads.

    Args:
      name: name of the stage in messages.
      task: what to train.
      config: length, batch size, optimiser.
      seed: seed of everything random in the steps.
      mesh: the devices.
      parallel: how the step runs on them, see `l2l_jax.train.parallel`.

    Raises:
      UserError: the devices cannot share a batch.
    """

    def __init__(
        self, name: str, task: Task, config: TrainingConfig, *, seed: int, mesh: Mesh,
        parallel: ParallelKind = "jit",
    ):  # fmt: skip
        with barrier():
            sharding.check_batch_size(config.batch_size, config.batch_parts, mesh, f"{name} batch_size")
            self._runner = make_parallel(mesh, parallel)
        self._mesh = self._runner.mesh  # its order of the devices
        self._name, self._task, self._config, self._seed = name, task, config, seed
        self._optimizer = make_optimizer(config)
        self._step: Step | None = None  # made for the first model
        self._one_compiles = threading.Lock()

    def _compiled(self, state: TrainState, value_range: tuple[float, float]) -> Step:
        """The step on states of the shapes of `state`."""
        config = self._config
        with self._one_compiles:
            if self._step is None:
                step = make_step(
                    self._task, self._optimizer, seed=self._seed, value_range=value_range,
                    learning_rate=learning_rate_schedule(config), ema_decay=config.ema_decay,
                    accumulate=config.accumulate, parallel=self._runner,
                )  # fmt: skip
                self._step = _first_call_alone(self._runner.compile(step, state))
            return self._step

    def train(
        self,
        params: Params,
        batches: Batches,
        folder: pathlib.Path,
        *,
        alpha: float = 0.0,
        budget: RetainBudget | None = None,
        teacher: Params | None = None,
        name: str = "",
        observe: Observe | None = None,
        observe_at: Collection[int] = (),
    ) -> Params:
        """Train to the last step, resuming from `folder` if there is something to resume.

        Args:
          params: the parameters to start from, all parts; only those the task names go to the devices.
          batches: of `{set: this process's rows}`, uint8 or floats in `batches.value_range`; its iterators
            can be saved, restored and closed.
          folder: keeps `checkpoints/`, `metrics.jsonl` and TensorBoard files.
          alpha: weight of the forget term, for tasks that have one.
          budget: moves the weight from there, and says which model of the run is its result.
          teacher: the model that the task's frozen parts are taken from; None: `params`.
          name: of this training in messages; by default that of the trainer.
          observe: is called after each step of `observe_at`, before that step's checkpoint is saved, if
            one is: a step is observed again only if the run ended before its next checkpoint.
          observe_at: numbers of steps.

        Returns:
          What the task makes of `params` and the trained parts (`Task.merge`), as host arrays.

        Raises:
          Interrupted: SIGTERM or SIGINT arrived in some process; the state of the last step is saved.
          Diverged: the loss is not finite.
          UserError: no checkpoint can be read.
        """
        name, task, config = name or self._name, self._task, self._config

        def whole(trained: Params) -> Params:
            return task.merge(params, to_host(trained))

        def look(number: int, state: TrainState) -> None:
            assert observe is not None, "there are steps to observe"
            observe(number, whole(state.result))

        def place(parts: Params) -> Params:
            return sharding.place(parts, self._mesh)

        with (
            stop_request() as stop,
            contextlib.closing(Checkpointer(folder / "checkpoints")) as checkpointer,
            contextlib.closing(iter(batches)) as iterator,
        ):
            first = task.initial(params, jax.random.key(self._seed))
            original = params if teacher is None else teacher
            frozen = place(task.cast({part: original[part] for part in task.frozen}))
            ema = config.ema_decay > 0
            if budget is not None:
                budget.begin(self._runner, place, {**params, **frozen}, task, alpha)
            like = abstract_state(first, self._optimizer, self._mesh, ema=ema, mask=self._any_mask(first))
            state = _resumed(checkpointer, like, iterator, budget)
            if state is not None:
                logger.info("%s: resuming after step %d of %d", name, int(state.step), config.steps)
            else:
                mask = None
                if task.saliency < 1:
                    mask = salient_weights(
                        task, params, frozen, batches, self._runner, seed=self._seed,
                        accumulate=config.accumulate,
                    )  # fmt: skip
                    unchanged = {part: params[part] for part in task.trained}
                    first = jax.tree.map(np.where, mask, first, unchanged)
                state = placed_state(first, self._optimizer, self._mesh, ema=ema, alpha=alpha, mask=mask)
            if int(state.step) < config.steps:
                step = self._compiled(state, batches.value_range)
                state = _run_steps(
                    name, step, state, frozen, iterator, config, folder, checkpointer, self._runner, stop,
                    frozenset(observe_at), look, budget,
                )  # fmt: skip
            return whole(state.result if budget is None else budget.best(state))

    def _any_mask(self, trained: Params) -> Params | None:
        """A mask of the right shapes, for restoring one from a checkpoint; None if all weights may change."""
        if self._task.saliency == 1:
            return None
        return jax.tree.map(lambda x: np.ones(x.shape, bool), trained)


def _first_call_alone(step: Step) -> Step:
    """The step, whose first call, which compiles it, other threads wait for instead of compiling it too."""
    lock, called = threading.Lock(), threading.Event()

    def call(*arguments):
        if called.is_set():
            return step(*arguments)
        with lock:
            result = step(*arguments)
            called.set()
        return result

    return call


def _resumed(checkpointer, like, iterator, budget):
    """The newest saved state, of the shapes of `like`; data and budget are put where they were then.

    None where nothing was saved.
    """
    resumed = checkpointer.restore_newest(like if budget is None else (like, like.result))
    if resumed is None:
        return None
    arrays, facts = resumed
    iterator.set_state(facts["iterator"])
    if budget is None:
        return arrays
    state, best = arrays
    budget.restore(best, facts["budget"])
    return state


def _save(checkpointer, number, state, iterator, budget):
    facts = {"iterator": iterator.get_state()}
    if budget is None:
        checkpointer.save(number, state, facts)
    else:
        best, facts["budget"] = budget.saved(state)
        checkpointer.save(number, (state, best), facts)


def _run_steps(
    name, step, state, frozen, iterator, config, folder, checkpointer, runner, stop, look_at, look, budget
):
    """Run the steps that are left; metrics are read one step late, so that the device never waits."""
    first = int(state.step)
    writer = MetricWriter(folder, first)
    pending: Mapping[str, jax.Array] | None = None
    with contextlib.closing(writer), Progress(name, config.steps, first) as progress:

        def report(number: int) -> None:
            if pending is not None:
                values = _check_finite(name, number, pending)
                _log(number, values, config, writer, progress)

        for number in range(first + 1, config.steps + 1):
            state, metrics = step(state, frozen, runner.rows(next(iterator)))
            report(number - 1)
            pending = metrics
            if budget is not None:
                pending = {**metrics, **budget.scalars()}
                state = budget.after(number, state)
            signal_number = stop.agreed()
            stopping = signal_number is not None
            saving = stopping or number % config.checkpoint_every == 0 or number == config.steps
            if saving or number in look_at:
                report(number)  # at once: no state is looked at or saved that is not known to be finite
                pending = None
            if number in look_at:
                look(number, state)
            if saving:
                _save(checkpointer, number, state, iterator, budget)
            if stopping:
                checkpointer.wait()
                raise Interrupted(number, signal_number)
        checkpointer.wait()
    return state


def _log(number, values, config, writer, progress):
    logged = number % config.log_every == 0 or number == config.steps
    shown = {name: value for name, value in values.items() if name not in ("grad_norm", "learning_rate")}
    progress.update(1, shown if logged else None)
    if logged:
        writer.write(number, values)


def _check_finite(name: str, number: int, metrics: Mapping[str, jax.Array]) -> dict[str, float]:
    values = {key: float(value) for key, value in jax.device_get(metrics).items()}
    if not all(map(math.isfinite, values.values())):
        shown = ", ".join(f"{key} {value}" for key, value in values.items())
        raise Diverged(
            f"{name}: the loss is not finite at step {number} ({shown}). Checkpoints of earlier "
            "steps are intact; lower the learning_rate or clip_norm and start in a new workdir."
        )
    return values
