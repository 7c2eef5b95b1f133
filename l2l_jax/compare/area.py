"""What forgetting costs: the front of a method's settings, and one number for it.

A setting of a method is a point: its cost, the error on retain images relative to the original's minus 1, and
its gain, some measure of forgetting that is the greater the better.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from l2l_jax.evals.intervals import Interval, bootstrap


class Point(NamedTuple):
    """What a setting costs and gains."""

    cost: float
    gain: float


def dominated(points: Sequence[Point]) -> list[bool]:
    """Return whether another point costs no more and gains no less, and is not the same in both."""

    def better(a: Point, b: Point) -> bool:
        return a.cost <= b.cost and a.gain >= b.gain and a != b

    return [any(better(other, point) for other in points) for point in points]


def area(chosen_by: Sequence[Point], limit: float, quoted: Sequence[Point] | None = None) -> float:
    """Return the area under a method's front: its mean gain over all budgets from 0 to `limit`.

    At a budget c the setting with the greatest gain is taken of those that cost at most c; where there is
    none the gain is 0. So the front is a staircase, and its area divided by `limit` is what a user may
    expect who is ready to pay any cost up to `limit` with equal probability.

    Args:
      chosen_by: The settings as measured on validation images, by which they are chosen.
      limit: The greatest cost; above 0.
      quoted: The same settings as measured on test images. Default: `chosen_by`.
    """
    quoted = chosen_by if quoted is None else quoted
    return sum(share * quoted[i].gain for share, i in _shares(chosen_by, limit))


def _shares(points: Sequence[Point], limit: float) -> list[tuple[float, int]]:
    """Return the settings of the staircase, and the share of budgets up to `limit` at which each is taken."""
    steps = staircase(points, limit)
    ends = [*(cost for cost, _ in steps[1:]), limit]
    return [((end - cost) / limit, i) for (cost, i), end in zip(steps, ends, strict=False)]


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


class Errors(NamedTuple):
    """Errors in the mask `[image]` of retain and forget images."""

    retain: np.ndarray
    forget: np.ndarray

    @classmethod
    def of(cls, errors: Mapping[str, np.ndarray]) -> "Errors":
        """From errors by set."""
        return cls(*(np.asarray(errors[of], np.float64) for of in cls._fields))


def ratio(model: np.ndarray, original: np.ndarray) -> Interval:
    """Mean error of a model relative to the original's, on the same images."""
    return bootstrap(lambda i: model[i].mean(-1) / original[i].mean(-1), len(model))


def point(models: Sequence[Errors], original: Errors) -> Point:
    """Cost and gain of a setting: medians over its seeds.

    The gain is the logarithm of the error on forget images relative to the original's.
    """
    ratios = [
        [np.mean(getattr(model, of)) / np.mean(getattr(original, of)) for model in models]
        for of in Errors._fields
    ]
    return Point(float(np.median(ratios[0])) - 1, float(np.log(np.median(ratios[1]))))


def area_interval(
    settings: Sequence[Sequence[Errors]], original: Errors, chosen_by: Sequence[Point], limit: float
) -> Interval:
    """Return the area of a method on test images, with its interval over them.

    The settings stay those that validation images choose; what they gain is resampled, the errors of all
    models on an image together.

    Args:
      settings: Errors on test images, by setting and seed.
      original: Errors of the original model.
      chosen_by: The settings as measured on validation images.
      limit: See `area`.
    """
    before = original.forget

    def resampled(chosen):
        gains = np.zeros(chosen.shape[:-1])
        for share, i in _shares(chosen_by, limit):
            ratios = [model.forget[chosen].mean(-1) / before[chosen].mean(-1) for model in settings[i]]
            gains = gains + share * np.log(np.median(ratios, axis=0))
        return gains

    return bootstrap(resampled, len(before))
