"""Bootstrap 95% confidence intervals of metrics over the measured images (Efron 1979)."""

from __future__ import annotations  # jaxtyping is not needed at run time

import statistics
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Shaped

LEVEL = 0.95  # confidence level of all intervals
RESAMPLES = 1000  # number of resamples
# Number of resamples for expensive metrics, for which only the standard error is needed
COSTLY_RESAMPLES = 100


class Interval(NamedTuple):
    """A metric on all images, and the bounds of its confidence interval at level `LEVEL`."""

    value: float
    low: float
    high: float

    def __contains__(self, value: Any) -> bool:
        return self.low <= value <= self.high


def bootstrap(statistic: Callable[..., np.ndarray], *counts: int, seed: int = 0) -> Interval:
    """Compute the percentile bootstrap interval of a statistic over images.

    The statistic takes an array of indices `[…, image]` for each of `counts`, the numbers of images of
    independent sets, and reduces the last axis. Arrays indexed with the same indices are resampled jointly.
    Resamples whose statistic is NaN are left out.
    """
    if not all(counts):
        raise ValueError("an interval needs at least one image in each set")
    value = float(statistic(*map(np.arange, counts)))
    drawn = _resample(statistic, counts, RESAMPLES, seed, vectorized=True)
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return Interval(value, float("nan"), float("nan"))
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Interval(value, float(low), float(high))


def mean_interval(values: Shaped[np.ndarray, " image"], *, seed: int = 0) -> Interval:
    """Compute the percentile bootstrap interval of the mean of `values` `[image]`."""
    values = np.asarray(values, np.float64)
    return bootstrap(lambda chosen: values[chosen].mean(-1), len(values), seed=seed)


def standard_interval(
    statistic: Callable[..., float], count: int, *, resamples: int = COSTLY_RESAMPLES, least: float = -np.inf
) -> Interval:
    """Compute the metric ± 1.96 bootstrap standard errors; the statistic takes indices `[image]`.

    Use it for metrics of distributions, such as the Fréchet distance: duplicate images in a resample increase
    them, which biases percentiles but not the spread. `least` is the least value of the metric.
    """
    value = float(statistic(np.arange(count)))
    error = _resample(statistic, (count,), resamples, 0, vectorized=False).std(ddof=1)
    reach = statistics.NormalDist().inv_cdf((1 + LEVEL) / 2) * error
    return Interval(value, float(max(value - reach, least)), float(value + reach))


def _resample(
    statistic: Callable, counts: tuple[int, ...], resamples: int, seed: int, *, vectorized: bool
) -> np.ndarray:
    import scipy.stats  # imported late: takes 0.7 s

    if min(counts) == 1:  # a single image does not vary
        return np.full(resamples, np.nan)
    data, options = [np.arange(count) for count in counts], dict(vectorized=vectorized, method="percentile")
    reduce = (lambda *chosen, axis: statistic(*chosen)) if vectorized else statistic
    options |= dict(n_resamples=resamples, rng=np.random.default_rng(seed))
    options["batch"] = max(1, 2**22 // max(counts))  # about 30 MB of indices
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)  # resamples without a value
        return scipy.stats.bootstrap(data, reduce, **options).bootstrap_distribution
