"""Cost of forgetting: the Pareto front of a method's settings and the area under it.

A setting of a method is a point. Its cost is the error on retain images relative to the original model, minus
1; its gain is the logarithm of the error on forget images relative to the original model.
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
    """Return the mean error of a setting relative to that of the original model, as the median over seeds.

    Args:
      models: Per-image errors, `[image]`, for each seed.
      original: Errors of the original model on the same images.
      chosen: Indices `[…, image]` of images; default: each image once.
    """
    return np.median([model[chosen].mean(-1) / original[chosen].mean(-1) for model in models], axis=0)


def dominated(points: Sequence[Point]) -> list[bool]:
    """Return, for each point, whether a different point has at most its cost and at least its gain."""

    def better(a: Point, b: Point) -> bool:
        return a.cost <= b.cost and a.gain >= b.gain and a != b

    return [any(better(other, point) for other in points) for point in points]


def staircase(points: Sequence[Point], limit: float) -> list[tuple[float, int]]:
    """Return the steps of the Pareto front as `(cost, index of the setting)`, in ascending order.

    Negative costs count as 0. The first of equal settings is taken.
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
    """Return the normalized area under a method's Pareto front: its mean gain over budgets in [0, `limit`].

    At a budget c, the gain is the greatest gain of all settings with a cost of at most c, or 0 without any.
    The front is therefore a step function, and its area divided by `limit` is the expected gain for a budget
    drawn uniformly from [0, `limit`]. Settings are chosen on validation images; the interval of their gain is
    bootstrapped over test images, jointly for all models.

    Args:
      settings: Errors on the forget test images, by setting and seed.
      original: Errors of the original model.
      chosen_by: Points of the settings on validation images.
      limit: Greatest cost, above 0.
    """
    steps = staircase(chosen_by, limit)
    ends = [*(cost for cost, _ in steps[1:]), limit]

    def resampled(chosen: np.ndarray) -> np.ndarray:
        gains = np.zeros(chosen.shape[:-1])
        for (cost, i), end in zip(steps, ends, strict=False):
            gains = gains + (end - cost) / limit * np.log(relative(settings[i], original, chosen))
        return gains

    return bootstrap(resampled, len(original))
