"""What happens between the steps of a training: checkpoints, metrics, observation."""

import dataclasses
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

from l2l_jax.errors import Interrupted
from l2l_jax.models.base import Params
from l2l_jax.train.checkpoint import Checkpointer
from l2l_jax.train.metric_writers import MetricWriter
from l2l_jax.utils.progress import Progress

if TYPE_CHECKING:
    from l2l_jax.train.loop import Training


SHOWN = ("retain_ratio", "forget_ratio", "loss", "retain", "forget")
"""Metrics that progress shows, if there are such."""


class Hook:
    """Acts between steps. All processes call the same methods of the same hooks after the same steps."""

    def begin(self, training: "Training") -> None:
        """Prepare for the first step, which follows step `training.step`."""

    def after_step(self, training: "Training") -> None:
        """Act after a step has started, which the devices may still be computing.

        A hook may replace `training.state` and add to `training.metrics`. One that uses the state's values
        calls `training.check()` first.
        """

    def on_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Receive the finite metrics of a step, one step late unless a hook has asked for them."""

    def close(self) -> None:
        """Release files and threads, also after an error."""


@dataclasses.dataclass(frozen=True)
class Observe(Hook):
    """Calls a function after some steps, before the step's checkpoint is saved.

    A resumed run observes a step again only if it ended before the next checkpoint.

    Attributes:
      steps: Numbers of steps.
      function: Called with the step and all parameters as host arrays.
    """

    steps: Collection[int]
    function: Callable[[int, Params], None]

    def after_step(self, training: "Training") -> None:
        """Call the function if it is due."""
        if training.step in self.steps:
            training.check()
            self.function(training.step, training.merged(training.state.result))


class LogMetrics(Hook):
    """Shows progress, and writes metrics every `log_every` steps and after the last one."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder

    def begin(self, training: "Training") -> None:
        """Open the file and the progress bar."""
        self._config = training.config
        self._writer = MetricWriter(self._folder, training.step)
        self._progress = Progress(training.name, self._config.steps, training.step)

    def on_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show and, when it is due, write metrics."""
        logged = step % self._config.log_every == 0 or step == self._config.steps
        there = [name for name in SHOWN if name in metrics]
        shown = {name: metrics[name] for name in there[:3]}  # a terminal of 80 columns has no room for more
        self._progress.update(1, shown if logged else None)
        if logged:
            self._writer.write(step, metrics)

    def close(self) -> None:
        """Close the file and the progress bar."""
        self._progress.close()
        self._writer.close()


class SaveCheckpoints(Hook):
    """Saves every `checkpoint_every` steps, after the last step, and when a signal asks the run to stop."""

    def __init__(self, checkpointer: Checkpointer):
        self._checkpointer, self._saved = checkpointer, -1

    def after_step(self, training: "Training") -> None:
        """Save if it is due; raise Interrupted once a run that was asked to stop is saved."""
        step, config = training.step, training.config
        last = step == config.steps
        if training.stop is None and not last and step % config.checkpoint_every:
            return
        if step != self._saved:
            training.check()
            self._checkpointer.save(step, *training.saved())
            self._saved = step
        if last or training.stop is not None:
            self._checkpointer.wait()
        if training.stop is not None:
            raise Interrupted(step, training.stop)
