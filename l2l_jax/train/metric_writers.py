"""Metrics of a training phase: JSON lines for programs, TensorBoard files for people."""

import json
import pathlib
from collections.abc import Mapping

from tensorboardX import SummaryWriter

from l2l_jax.utils.io import atomic_write
from l2l_jax.utils.multihost import is_primary


class MetricWriter:
    """Writes `folder/metrics.jsonl` and TensorBoard event files next to it, in the primary process alone.

    Args:
      folder: Where to write.
      first_step: Metrics after this step are dropped from existing files: the run resumes there.
    """

    def __init__(self, folder: pathlib.Path, first_step: int = 0):
        self._active = is_primary()
        if not self._active:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(folder) if row["step"] <= first_step]
        atomic_write(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._lines = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder), purge_step=first_step + 1 if first_step else None)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a step; the JSON line is with the operating system when this returns."""
        if not self._active:
            return
        self._lines.write(json.dumps({"step": step, **metrics}) + "\n")
        self._lines.flush()
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the files."""
        if self._active:
            self._lines.close()
            self._board.close()


def read_metrics(folder: pathlib.Path) -> list[dict[str, float]]:
    """Read the rows of `folder/metrics.jsonl`; a last line cut off by a crash is dropped."""
    path = folder / "metrics.jsonl"
    rows = []
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
