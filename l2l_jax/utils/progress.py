"""Progress reporting: a bar on a terminal, plain log lines elsewhere, and a summary at the end."""

import contextlib
import logging
import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

from l2l_jax.utils import distributed
from l2l_jax.utils.text import printable_lines

logger = logging.getLogger(__name__)

LINE_EVERY_SECONDS = 10.0  # minimum time between two plain lines

BAR = "{desc} {percentage:3.0f}%|{bar:8}| {unit} {n_fmt} of {total_fmt} [{remaining} left{postfix}]"

_outer: list["Progress"] = []  # the displayed progress, if any


class LineHandler(logging.Handler):
    """A log handler that writes plain lines to stderr, above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; ignore errors such as a closed pipe or a full disk."""
        with contextlib.suppress(OSError):
            tqdm.write(printable_lines(self.format(record)), file=sys.stderr)


def show_log() -> None:
    """Show the log of this package unless a program, notebook or script has configured logging for it."""
    package = logging.getLogger("l2l_jax")
    if package.handlers or package.level != logging.NOTSET or package.isEnabledFor(logging.INFO):
        return
    package.addHandler(LineHandler())
    package.setLevel(logging.INFO if distributed.place()[0] == 0 else logging.WARNING)
    package.propagate = False


class Progress:
    """Progress of `total` steps (of a `unit`), `done` of them finished, with time left and latest metrics.

    A progress that starts while another one is open has no display; the outer one shows its title.
    """

    def __init__(self, title: str, total: int, done: int = 0, unit: str = "step"):
        show_log()
        self._title, self._total, self._done, self._unit = title, total, done, unit
        self._first, self._rated, self._metrics, self._inner = done, 0.0, "", ""
        self._begun = self._shown = time.monotonic()
        self._bar: tqdm | None = None
        self._in: Progress | None = _outer[0] if _outer else None
        if self._in is None:
            _outer.append(self)
            if sys.stderr.isatty() and distributed.place()[0] == 0:
                self._bar = tqdm(
                    total=total,
                    initial=done,
                    desc=title,
                    unit=unit,
                    leave=False,
                    dynamic_ncols=True,
                    bar_format=BAR,
                )

    def update(self, steps: int = 1, metrics: Mapping[str, float] | None = None) -> None:
        """Advance by `steps`; `metrics` replaces the displayed metrics."""
        self._done += steps
        if not self._rated:  # the first step includes compilation, so exclude it from the rate
            self._first, self._rated = self._done, time.monotonic()
        if metrics:
            self._metrics = " ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        if self._in is not None and self._in not in _outer:  # the outer one ended first, in another thread
            self._in = _outer[0] if _outer else None
            if self._in is None:
                _outer.append(self)
        if self._in is not None:
            self._in._inner = f"{self._title} {self._done}/{self._total}"
            self._in._show(0)
        else:
            self._inner = ""
            self._show(steps)

    def lengthen(self, total: int) -> None:
        """Change the total number of steps."""
        self._total = total
        if self._bar is not None:
            self._bar.total = total

    def _show(self, steps: int) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(self._inner or self._metrics, refresh=False)
            self._bar.update(steps)
            if not steps and time.monotonic() - self._shown > 0.1:
                self._shown = time.monotonic()
                self._bar.refresh()
        elif time.monotonic() - self._shown >= LINE_EVERY_SECONDS and self._done < self._total:
            self._shown = time.monotonic()
            parts = [f"{self._title}, {self._unit} {self._done} of {self._total}"]
            if self._done > self._first:
                rate = (self._done - self._first) / max(self._shown - self._rated, 1e-9)
                left = duration((self._total - self._done) / rate)
                speed = f"{rate:.1f} {self._unit}/s" if rate >= 1 else f"{1 / rate:.1f} s/{self._unit}"
                parts += [speed, f"{left} left"]
            logger.info("%s", " · ".join([*parts, *filter(None, [self._inner or self._metrics])]))

    def close(self) -> None:
        """Remove the bar and log a summary line."""
        if self._in is not None:
            return
        _outer.remove(self)
        if self._bar is not None:
            self._bar.close()
        took = duration(time.monotonic() - self._begun)
        parts = [f"{self._title} {self._done}/{self._total}", took, *filter(None, [self._metrics])]
        logger.info("%s", " · ".join(parts))

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def duration(seconds: float) -> str:
    """Format a duration as "12 s", "3 min 5 s" or "2 h 10 min"."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    minutes, seconds_left = divmod(rounded, 60)
    if minutes < 60:
        return f"{minutes} min {seconds_left} s"
    return f"{minutes // 60} h {minutes % 60} min"
