"""Costs of forgetting: the front of a method's settings, and one number for it.

A setting of a method is a point: its cost, the error on retain images relative to the original's minus 1, and
its gain, the logarithm of the error on forget images relative to the original's.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from l2l_jax.evals.intervals import Interval, bootstrap


class Point(NamedTuple):
    """Cost and gain of a setting."""

    cost: float
    gain: float


def relative(models: Sequence[np.ndarray], original: np.ndarray, chosen: Any = slice(None)) -> np.ndarray:
    """Return the mean error of a setting relative to the original's, the median over its seeds.

    Args:
      models: Errors of images, `[image]`, by seed.
      original: Errors of the original model on the same images.
      chosen: Indices `[…, image]` of images; default: each once.
    """
    return np.median([model[chosen].mean(-1) / original[chosen].mean(-1) for model in models], axis=0)


def dominated(points: Sequence[Point]) -> list[bool]:
    """Return whether another point costs no more and gains no less, and is not the same in both."""

    def better(a: Point, b: Point) -> bool:
        return a.cost <= b.cost and a.gain >= b.gain and a != b

    return [any(better(other, point) for other in points) for point in points]


def staircase(points: Sequence[Point], limit: float) -> list[tuple[float, int]]:
    """Return where the best affordable setting changes: `(budget, number of the setting)`, ascending.

    Settings that cost less than nothing are affordable from 0 on. Of equal ones the first is taken.
    """
    steps: list[tuple[float, int]] = []
    order = sorted(range(len(points)), key=lambda i: (max(points[i].cost, 0.0), -points[i].gain))
    for i in order:
        cost, gain = max(points[i].cost, 0.0), points[i].gain
        if cost < limit and (not steps or gain > points[steps[-1][1]].gain):
            steps.append((cost, i))
    return steps


def area_interval(
    settings: Sequence[Sequence[np.ndarray]], original: np.ndarray, chosen_by: Sequence[Point], limit: float
) -> Interval:
    """Return the area under a method's front, its mean gain over all budgets from 0 to `limit`.

    At a budget c the setting with the greatest gain is taken of those that cost at most c; where there is
    none the gain is 0. So the front is a staircase, and its area divided by `limit` is what a user may
    expect who is ready to pay any cost up to `limit` with equal probability. The settings are those that
    validation images choose; what they gain is resampled over test images, all models together.

    Args:
      settings: Errors on forget images of the test set, by setting and seed.
      original: Errors of the original model.
      chosen_by: The settings as measured on validation images.
      limit: The greatest cost; above 0.
    """
    steps = staircase(chosen_by, limit)
    ends = [*(cost for cost, _ in steps[1:]), limit]

    def resampled(chosen: np.ndarray) -> np.ndarray:
        gains = np.zeros(chosen.shape[:-1])
        for (cost, i), end in zip(steps, ends, strict=False):
            gains = gains + (end - cost) / limit * np.log(relative(settings[i], original, chosen))
        return gains

    return bootstrap(resampled, len(original))
