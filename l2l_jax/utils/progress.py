"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

import logging
import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

from l2l_jax.utils import distributed

logger = logging.getLogger(__name__)

LINE_EVERY_SECONDS = 5.0
"""Least time between two plain lines."""


class Progress:
    """A progress report of `total` steps, with rate, remaining time and the latest figures.

    Args:
      title: what is going on.
      total: how many steps there are.
      done: how many of them are done already.
      unit: what a step is called.
    """

    def __init__(self, title: str, total: int, done: int = 0, unit: str = "step"):
        self._title, self._total, self._done, self._unit = title, total, done, unit
        self._first, self._start, self._shown = done, None, time.monotonic()
        self._figures = ""
        terminal = sys.stderr.isatty() and distributed.place()[0] == 0
        self._bar = (
            tqdm(total=total, initial=done, desc=title, unit=unit, dynamic_ncols=True, leave=True)
            if terminal
            else None
        )

    def update(self, steps: int = 1, figures: Mapping[str, float] | None = None) -> None:
        """Advance by `steps`; `figures` replaces the figures shown."""
        self._done += steps
        if self._start is None:  # the first step compiles and says nothing of the rate
            self._first, self._start = self._done, time.monotonic()
        if figures:
            self._figures = " ".join(f"{name} {value:.4g}" for name, value in figures.items())
        if self._bar is not None:
            if figures:
                self._bar.set_postfix_str(self._figures, refresh=False)
            self._bar.update(steps)
        elif time.monotonic() - self._shown >= LINE_EVERY_SECONDS:
            self._line()

    def _line(self) -> None:
        self._shown = time.monotonic()
        parts = [f"{self._title} {self._done}/{self._total}"]
        if self._start is not None and self._done > self._first:
            rate = (self._done - self._first) / max(self._shown - self._start, 1e-9)
            left = (self._total - self._done) / rate
            parts += [f"{rate:.1f} {self._unit}/s", f"{left:.0f} s left"]
        logger.info("%s", " · ".join([*parts, *filter(None, [self._figures])]))

    def close(self) -> None:
        """End the bar, or print the last line."""
        if self._bar is not None:
            self._bar.close()
        else:
            self._line()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
