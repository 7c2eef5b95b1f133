"""Interleaved timing of several candidates, which exposes all of them to the same disturbances."""

import json
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from tabulate import tabulate

from l2l_jax.cli.output_flag import OUTPUT

T = TypeVar("T")


def in_turns(timed: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Return the seconds that each call returned in each round, without the first, warm-up round."""
    seconds: dict[str, list[T]] = {name: [] for name in timed}
    for number in range(rounds + 1):
        for name, call in timed.items():
            taken = call()
            if number:
                seconds[name].append(taken)
    return seconds


def table(seconds: Mapping[str, Sequence[float]], reference: str) -> str:
    """Format one line per name: median, quartiles, and the ratio of the median to that of `reference`."""
    unit = statistics.median(seconds[reference])
    lines = []
    for name, values in seconds.items():
        first, median, third = statistics.quantiles(values, n=4, method="inclusive")
        lines.append([name, median, first, third, median / unit])
    header = ["", "seconds a step", "first quartile", "third quartile", "ratio"]
    return tabulate(lines, header, tablefmt="github", floatfmt=".3f")


def write_report(report: Mapping[str, Any]) -> None:
    """Write a report to the file given by --output, if any."""
    if OUTPUT.value:
        pathlib.Path(OUTPUT.value).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
