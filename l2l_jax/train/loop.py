"""The training loop: resume, step, call hooks."""

import contextlib
import dataclasses
import logging
import math
import pathlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from l2l_jax.data.loader import Batches
from l2l_jax.errors import Diverged, Interrupted
from l2l_jax.methods.base import Objective
from l2l_jax.models.base import Params
from l2l_jax.train import sharding
from l2l_jax.train.budget import RetainBudget
from l2l_jax.train.checkpoint import Checkpointer
from l2l_jax.train.hooks import Hook, LogMetrics, SaveCheckpoints
from l2l_jax.train.one_shot import solve
from l2l_jax.train.optim import TrainingConfig, make_optimizer
from l2l_jax.train.parallel import Parallel, ParallelKind, make_parallel
from l2l_jax.train.saliency import salient_weights
from l2l_jax.train.step import Step, TrainState, abstract_state, make_step, placed_state
from l2l_jax.utils.multihost import to_host
from l2l_jax.utils.stopping import StopRequest, stop_request

logger = logging.getLogger(__name__)
# Held while compiling a step, because the compiler needs more memory than the steps of a small model
ONE_COMPILES = threading.Lock()


@dataclasses.dataclass(frozen=True)
class TrainRun:
    """One run of a `Trainer`."""

    params: Params  # initial parameters, all parts; only those named by the objective go to the devices
    # `{set: this process's rows}`, uint8 or floats in `batches.value_range`; its iterators can be saved,
    # restored and closed
    batches: Batches
    folder: pathlib.Path  # folder of `checkpoints/`, `metrics.jsonl` and TensorBoard files
    alpha: float = 0.0  # weight of the forget term, for objectives that have one
    budget: RetainBudget | None = None  # adapts the weight, starting at `alpha`, and chooses the final model
    teacher: Params | None = None  # source of the objective's frozen parts; None: `params`
    name: str = ""  # name in messages; by default the trainer's
    hooks: Sequence[Hook] = ()  # called after every step, before its checkpoint is saved
    # Number of images by set, for objectives that weight sets by their sizes
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    steps: int | None = None  # number of steps, if the learning rate is constant; None: the trainer's
    keep_last: bool = True  # whether to save the state after the last step


@dataclasses.dataclass
class Training:
    """The state of a run in progress, which hooks can access."""

    # The run, its objective and config
    run: TrainRun
    name: str
    objective: Objective
    config: TrainingConfig
    parallel: Parallel
    frozen: Params  # the objective's frozen parts, on the devices
    iterator: Any  # batches of this process
    hooks: Sequence[Hook] = ()  # called in order
    # State after the newest step, the step's number and, on the devices, its metrics
    state: TrainState = None  # type: ignore[assignment]  # set before the first hook is called
    first: int = 0  # number of the step after which the run started
    step: int = 0
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    stop: int | None = None  # signal that asks all processes to stop after this step, or None

    @property
    def last(self) -> int:
        """Return the number of the last step; a budget may end the run earlier, after any cycle."""
        return self.config.cycles[0] if self.run.budget is None else self.run.budget.ended

    def merged(self, trained: Params) -> Params:
        """Return all parts of the model with the given trained parts, as host arrays."""
        return self.objective.merge(self.run.params, to_host(trained))

    def check(self) -> None:
        """Read the metrics of the newest step, unless already read, and pass them to the hooks.

        Raises:
          Diverged: The loss is not finite.
        """
        metrics, self.metrics = self.metrics, {}
        if not metrics:
            return
        values = {key: float(value) for key, value in jax.device_get(metrics).items()}
        if not all(map(math.isfinite, values.values())):
            text = ", ".join(f"{key} {value}" for key, value in values.items())
            raise Diverged(
                f"{self.name}: the loss is not finite at step {self.step} ({text}). Checkpoints of earlier "
                "steps are intact; lower the learning_rate or clip_norm and start in a new workdir."
            )
        for hook in self.hooks:
            hook.on_metrics(self.step, values)

    def after_step(self) -> None:
        """Call `after_step` of all hooks."""
        for hook in self.hooks:
            hook.after_step(self)

    def saved(self) -> tuple[Any, dict[str, Any]]:
        """Return the contents of a checkpoint: arrays and JSON values."""
        facts = {"iterator": self.iterator.get_state()}
        if self.run.budget is None:
            return self.state, facts
        best, facts["budget"] = self.run.budget.saved(self.state)
        return (self.state, best), facts

    def restore(self, arrays: Any, facts: Mapping[str, Any]) -> None:
        """Restore the state returned by `saved`."""
        self.iterator.set_state(facts["iterator"])
        if self.run.budget is not None:
            arrays, best = arrays
            self.run.budget.restore(best, facts["budget"])
        self.state = arrays
        self.first = self.step = int(self.state.step)


class Trainer:
    """The step of an objective, compiled once for any number of threads and of models with the same shapes.

    Args:
      name: Name in messages.
      objective: Training objective.
      config: Number of steps, batch size and optimizer.
      seed: Random seed of the steps.
      mesh: Mesh of the devices.
      parallel: Kind of parallelism, see `l2l_jax.train.parallel`.

    Raises:
      UserError: The batch cannot be split evenly over the devices.
    """

    def __init__(
        self,
        name: str,
        objective: Objective,
        config: TrainingConfig,
        *,
        seed: int,
        mesh: Mesh,
        parallel: ParallelKind = "jit",
    ):
        sharding.check_batch_size(config.batch_size, config.batch_parts, mesh, f"{name} batch_size")
        self._parallel = make_parallel(mesh, parallel)
        self._mesh = self._parallel.mesh  # its order of the devices
        self._name, self._objective, self._config, self._seed = name, objective, config, seed
        self._optimizer = make_optimizer(config)
        self._step: Step | None = None
        self._compiled = False

    def train(self, run: TrainRun) -> Params:
        """Train to the last step, resuming from the checkpoints in `run.folder` if there are any.

        An objective without training steps is solved again at each call.

        Returns:
          The result of `Objective.merge` on `run.params` and the trained parts, as host arrays.

        Raises:
          Interrupted: A signal arrived in some process; the state of the last step is saved.
          Diverged: The loss is not finite.
          UserError: None of the checkpoints can be read.
        """
        if self._objective.one_shot is not None:
            training = self._begin(run, None)
            start = self._objective.initial(run.params, jax.random.key(self._seed))
            return training.merged(solve(training, start, seed=self._seed))
        with (
            stop_request() as stop,
            contextlib.closing(Checkpointer(run.folder / "checkpoints")) as checkpointer,
            contextlib.closing(iter(run.batches)) as iterator,
            contextlib.ExitStack() as stack,
        ):
            training = self._start_or_resume(run, iterator, checkpointer)
            if training.step < training.last:
                own = [] if run.budget is None else [run.budget]
                save = SaveCheckpoints(checkpointer, run.keep_last)
                training.hooks = [*own, *run.hooks, save, LogMetrics(run.folder)]
                for hook in training.hooks:
                    hook.begin(training)
                    stack.callback(hook.close)
            while training.step < training.last:
                self._advance(training, stop)
                stop.patient = True  # the step is compiled, so the next step ends soon and is saved
            best = training.state.result if run.budget is None else run.budget.best(training.state)
            return training.merged(best)

    def _begin(self, run: TrainRun, iterator: Any) -> Training:
        """Return a `Training` without state, after its budget has measured the original model."""
        teacher = run.teacher or run.params
        frozen = self._objective.cast({part: teacher[part] for part in self._objective.frozen})
        frozen = sharding.place(frozen, self._mesh)
        name, config = run.name or self._name, self._config
        if run.steps is not None:
            config = dataclasses.replace(config, steps=run.steps)
        training = Training(run, name, self._objective, config, self._parallel, frozen, iterator)
        if run.budget is not None:
            run.budget.start_from(training)
        return training

    def _start_or_resume(self, run: TrainRun, iterator: Any, checkpointer: Checkpointer) -> Training:
        """Return the `Training` before its next step."""
        objective, training = self._objective, self._begin(run, iterator)
        config = training.config
        first = objective.initial(run.params, jax.random.key(self._seed))
        # Saved states have a mask only if the objective has one.
        mask = None if objective.saliency == 1 else jax.tree.map(lambda x: np.ones(x.shape, bool), first)
        optimizer, ema = self._optimizer, config.ema_decay > 0
        training.state = abstract_state(first, optimizer, self._mesh, ema=ema, mask=mask)
        checkpoint = checkpointer.restore_newest(training.saved()[0])
        if checkpoint is not None:
            training.restore(*checkpoint)
            logger.info("%s: resuming after step %d of %d", training.name, training.step, training.last)
            return training
        if mask is not None:
            mask = salient_weights(training, seed=self._seed)
            unchanged = {part: run.params[part] for part in objective.trained}
            first = jax.tree.map(np.where, mask, first, unchanged)
        training.state = placed_state(first, optimizer, self._mesh, ema=ema, alpha=run.alpha, mask=mask)
        return training

    def _advance(self, training: Training, stop: StopRequest) -> None:
        """Dispatch a step, then read the metrics of the previous step, so the device does not wait."""
        try:
            batch = next(training.iterator)
        except Interrupted as error:  # only this process stops waiting for an image, not the others
            if jax.process_count() > 1 or training.step == training.first:
                raise
            training.stop = error.signal_number
            training.after_step()
            raise
        training.state, metrics = self._call(training, self._parallel.rows(batch))
        training.check()
        training.step += 1
        training.metrics = metrics
        training.stop = stop.agreed()
        training.after_step()

    def _call(self, training: Training, batch: Any) -> tuple[TrainState, Mapping[str, Any]]:
        """Call the step; other threads wait for the first call, which compiles it."""
        with contextlib.nullcontext() if self._compiled else ONE_COMPILES:
            if self._step is None:
                args = self._objective, self._optimizer, self._config, self._parallel
                step = make_step(*args, seed=self._seed, value_range=training.run.batches.value_range)
                self._step = self._parallel.compile(step, training.state)
            result = self._step(training.state, training.frozen, batch)
            self._compiled = True
            return result
