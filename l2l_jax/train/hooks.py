"""Hooks between training steps: checkpoints, metrics, observation."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, TextIO

from tensorboardX import SummaryWriter

from l2l_jax.errors import Interrupted
from l2l_jax.models.base import Params
from l2l_jax.train.checkpoint import Checkpointer
from l2l_jax.utils.io import atomic_write
from l2l_jax.utils.multihost import is_primary
from l2l_jax.utils.progress import Progress

if TYPE_CHECKING:
    from l2l_jax.train.loop import Training

# Metrics to display with the progress, if available; at most three, to fit in 80 columns
SHOWN = ("retain_ratio", "forget_ratio", "loss", "retain", "forget")


class Hook:
    """Base class of hooks. All processes call the same methods of the same hooks after the same steps."""

    def begin(self, training: "Training") -> None:
        """Prepare for the first step, which follows step `training.step`."""

    def after_step(self, training: "Training") -> None:
        """Run after a step was dispatched; the devices may still be computing it.

        A hook may replace `training.state` and add to `training.metrics`. It must call `training.check()`
        before using values of the state.
        """

    def on_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Receive the finite metrics of a step, one step late unless a hook has requested them."""

    def close(self) -> None:
        """Release files and threads, also after an error."""


@dataclasses.dataclass(frozen=True)
class Observe(Hook):
    """A hook that calls a function after given steps, before their checkpoints; resuming may repeat calls."""

    steps: Collection[int]  # numbers of steps
    function: Callable[[int, Params], None]  # called with the step and all parameters as host arrays

    def after_step(self, training: "Training") -> None:  # noqa: D102
        if training.step in self.steps:
            training.check()
            self.function(training.step, training.merged(training.state.result))


class LogMetrics(Hook):
    """A hook that displays progress and writes metrics every `log_every` steps and after the last step.

    The primary process writes `folder/metrics.jsonl` and TensorBoard event files next to it. When a run
    resumes, metrics of later steps are dropped from existing files.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._lines: TextIO | None = None

    def begin(self, training: "Training") -> None:
        """Open the files and the progress bar."""
        self._training, first = training, training.step
        self._progress = Progress(training.name, training.config.cycle_of(first + 1)[1], first)
        if not is_primary():
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "metrics.jsonl"
        kept = [row for row in read_metrics(self._folder) if row["step"] <= first]
        atomic_write(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._lines = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(self._folder), purge_step=first + 1 if first else None)

    def on_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Display metrics and write them if due; the line is flushed before this method returns."""
        due = step % self._training.config.log_every == 0 or step == self._training.last
        names = [name for name in SHOWN if name in metrics][:3]
        self._progress.lengthen(self._training.config.cycle_of(step)[1])
        self._progress.update(1, {name: metrics[name] for name in names} if due else None)
        if due and self._lines is not None:
            self._lines.write(json.dumps({"step": step, **metrics}) + "\n")
            self._lines.flush()
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the files and the progress bar."""
        self._progress.close()
        if self._lines is not None:
            self._lines.close()
            self._board.close()


def read_metrics(folder: pathlib.Path) -> list[dict[str, float]]:
    """Read the rows of `folder/metrics.jsonl`; a last line truncated by a crash is dropped."""
    path = folder / "metrics.jsonl"
    rows = []
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class SaveCheckpoints(Hook):
    """A hook that saves every `checkpoint_every` steps, after the last step, and when asked to stop.

    Without `keep_last`, the last step is not saved.
    """

    def __init__(self, checkpointer: Checkpointer, keep_last: bool = True):
        self._checkpointer, self._keep_last, self._saved = checkpointer, keep_last, -1

    def after_step(self, training: "Training") -> None:
        """Save if due; raise Interrupted once a run that was asked to stop is saved."""
        step = training.step
        last = self._keep_last and step == training.last
        if training.stop is None and not last and step % training.config.checkpoint_every:
            return
        if step != self._saved:
            training.check()
            self._checkpointer.save(step, *training.saved())
            self._saved = step
        if last or training.stop is not None:
            self._checkpointer.wait()
        if training.stop is not None:
            raise Interrupted(step, training.stop)
