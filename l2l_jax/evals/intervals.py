"""How sure a figure is: 95 % intervals by resampling the images it was measured on (Efron 1979)."""

import statistics
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
"""Confidence of all intervals."""

RESAMPLES = 1000
"""How often a set of images is drawn anew."""

COSTLY_RESAMPLES = 100
"""How often for figures that take long, of which only the standard error is asked."""


class Interval(NamedTuple):
    """A figure with its interval of confidence `LEVEL`.

    Attributes:
      value: the figure itself, of all images.
      low, high: ends of the interval.
    """

    value: float
    low: float
    high: float

    def __contains__(self, value: object) -> bool:
        return self.low <= value <= self.high


def bootstrap(
    statistic: Callable[..., np.ndarray], *counts: int, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Percentile interval of a statistic over images.

    Args:
      statistic: takes one array of indices `[…, image]` for each entry of `counts` and reduces the last
        axis. It may look up several arrays with the same indices: what was measured on the same images
        is then resampled together.
      counts: numbers of images; more than one for sets that were drawn independently.
      resamples: how often they are drawn anew.
      seed: of the draws.

    Returns:
      The interval; of resamples whose statistic is not a number, nothing is known and they are left out.

    Raises:
      ValueError: an empty set.
    """
    if not all(counts):
        raise ValueError("there is no interval of a figure of no images")
    whole = [np.arange(count) for count in counts]
    value = float(statistic(*whole))
    drawn = _resampled(statistic, whole, resamples, seed)
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return Interval(value, float("nan"), float("nan"))
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Interval(value, float(low), float(high))


def mean_interval(values: np.ndarray, *, seed: int = 0) -> Interval:
    """Percentile interval of the mean of `values` `[image]`."""
    values = np.asarray(values, np.float64)
    return bootstrap(lambda chosen: values[chosen].mean(-1), len(values), seed=seed)


def standard_interval(
    statistic: Callable[[np.ndarray], float],
    count: int,
    *,
    resamples: int = COSTLY_RESAMPLES,
    least: float = -np.inf,
    seed: int = 0,
) -> Interval:
    """The figure ± 1.96 bootstrap standard errors.

    For figures of distributions, such as the Fréchet distance: images that a resample holds twice make it
    greater than it is, so that percentiles would lie beside the figure. Its spread is right all the same.

    Args:
      statistic: takes indices `[image]`.
      count: number of images.
      resamples: how often they are drawn anew.
      least: the least value that the figure can take.
      seed: of the draws.
    """
    value = float(statistic(np.arange(count)))

    def one_by_one(chosen):
        return np.apply_along_axis(statistic, -1, chosen)

    error = _resampled(one_by_one, [np.arange(count)], resamples, seed).std(ddof=1)
    reach = statistics.NormalDist().inv_cdf((1 + LEVEL) / 2) * error
    return Interval(value, float(max(value - reach, least)), float(value + reach))


def _resampled(statistic, whole, resamples, seed) -> np.ndarray:
    """The statistic of every resample, `[resample]`; as many at a time as fit into some 30 MB of indices."""
    if min(map(len, whole)) == 1:  # drawing from one image always gives that image
        return np.full(resamples, np.nan)
    rng = np.random.default_rng(seed)
    size = max(1, 2**22 // max(map(len, whole)))
    batches = [min(size, resamples - first) for first in range(0, resamples, size)]
    return np.concatenate([
        statistic(*(rng.integers(len(indices), size=(batch, len(indices))) for indices in whole))
        for batch in batches
    ])  # fmt: skip
