"""Non-inferiority tests: does an unlearned model know more than a model that never saw the images?

Each test compares two models on the same test images by one measure. Its value is the *excess*: how much more
the unlearned model knows than the retrained model(s), in units of the measure:

    error     log(masked MSE of the retrained model / masked MSE of the unlearned model)
    accuracy  difference of the balanced accuracy with which a classifier finds the class
    auc       difference of the area under the ROC curve of membership inference
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

Measure = Literal["error", "accuracy", "auc"]

ALPHA = 0.05
"""Level of every one-sided test."""

POWER = 0.8
"""Chance of a decision at the number of test images that is reported as enough."""

MARGINS: Mapping[Measure, float] = {"error": math.log(1.1), "accuracy": 0.05, "auc": 0.05}
"""Excess that does not count: the least margin of each measure, fixed before any model was measured."""

TAIL = 2.0
"""Factor on the sample skewness: samples of heavy tails look less skewed than they are. Chosen by simulation
(research/verdict_simulation.py)."""

Sample = Sequence[np.ndarray]
"""Measurements of one model, arrays `[image]`: for "error" the masked MSE; for "accuracy" whether the class
was found, and the class ids; for "auc" the errors of members and of other images."""


class SeedSpread(NamedTuple):
    """Spread of retrained models that differ by their seed alone.

    Attributes:
      deviation: Standard deviation of the measure over the models, with the logarithm of the error.
      count: Number of models, at least two.
    """

    deviation: float
    count: int  # type: ignore[assignment]  # in place of tuple.count

    def margin(self, references: int) -> float:
        """Return the 95% bound on how far another seed differs from the mean of `references` models."""
        from scipy.stats import t  # SciPy takes long to load

        return float(t.ppf(1 - ALPHA, self.count - 1) * self.deviation * math.sqrt(1 + 1 / references))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Result of one test.

    Attributes:
      measure: What was compared.
      excess: How much more the unlearned model knows than the retrained model(s).
      low, high: One-sided 95% confidence bounds of the excess.
      margin: Excess that does not count.
      p_holds: p-value of "the excess is at least the margin".
      p_violated: p-value of "the excess is at most the margin".
      images: Number of test images.
      fixed_margin: The margin without the spread of retrained seeds.
    """

    measure: Measure
    excess: float
    low: float
    high: float
    margin: float
    p_holds: float
    p_violated: float
    images: int
    fixed_margin: float

    @property
    def holds(self) -> bool:
        """Whether the unlearned model is shown to know no more than the retrained one."""
        return self.p_holds <= ALPHA

    def images_needed(self) -> float:
        """Return about how many test images would decide with probability `POWER`; infinity if none would."""
        from scipy.stats import norm

        distance = abs(self.excess - self.margin)
        reach = (self.high - self.low) / 2 / norm.ppf(1 - ALPHA)
        needed = norm.ppf(1 - ALPHA) + norm.ppf(POWER)
        with np.errstate(divide="ignore"):
            return float(self.images * np.square(np.divide(needed * reach, distance)))

    def describe(self) -> dict[str, Any]:
        """Return all fields, JSON-able."""
        values = dataclasses.asdict(self)
        plain = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in values.items()}
        return {**plain, "holds": self.holds}


def compare(
    measure: Measure, unlearned: Sample, retrained: Sequence[Sample], seeds: SeedSpread | None = None
) -> Comparison:
    """Test whether the unlearned model knows more than the retrained models.

    Args:
      measure: What the samples are, see `Sample`.
      unlearned: Measurements of the unlearned model.
      retrained: Measurements of each retrained model on the same images. Their mean is the reference.
      seeds: Spread of retrained models if known. None: measured on `retrained` if there are several.

    Raises:
      ValueError: There is no retrained model, or the models were not measured on the same images.
    """
    counts = [len(values) for values in unlearned]
    if not retrained or any([len(values) for values in sample] != counts for sample in retrained):
        raise ValueError("models must be measured on the same images to be compared")
    if len(retrained) > 1:
        seeds = SeedSpread(deviation(measure, retrained), len(retrained))
    margin = MARGINS[measure]
    if seeds is not None:
        margin = max(margin, seeds.margin(len(retrained)))
    test = _TESTS[measure](unlearned, retrained)
    low, high = test.bounds()
    return Comparison(
        measure, test.excess, low, high, margin,
        p_holds=test.p_values(margin)[0], p_violated=test.p_values(margin)[1],
        images=sum(counts) if measure == "auc" else counts[0], fixed_margin=MARGINS[measure],
    )  # fmt: skip


def deviation(measure: Measure, models: Sequence[Sample]) -> float:
    """Return the standard deviation of what several models know, see `SeedSpread`."""
    return float(np.std([knowledge(measure, sample) for sample in models], ddof=1))


def knowledge(measure: Measure, sample: Sample) -> float:
    """Return how much a model knows: minus the log of its mean error, its balanced accuracy, or its AUC."""
    if measure == "error":
        return -math.log(max(float(np.mean(sample[0])), 1e-12))
    if measure == "accuracy":
        right, classes = sample
        return float(np.mean([right[classes == c].mean() for c in np.unique(classes)]))
    return float(auc(*sample))


def auc(members: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the probability that a member's error `[…, member]` is less than another's `[…, other]`.

    Ties count half: the area under the ROC curve by the sum of ranks (Mann & Whitney 1947).
    """
    from scipy.stats import rankdata

    count = members.shape[-1]
    ranks = rankdata(np.concatenate([-members, -others], axis=-1), axis=-1)
    total = ranks[..., :count].sum(-1) - count * (count + 1) / 2
    return total / (count * others.shape[-1])


class _Normal(NamedTuple):
    """A test of an estimate with a standard error, by Student's t."""

    excess: float
    error: float
    freedom: int

    def p_values(self, margin: float) -> tuple[float, float]:
        from scipy.stats import t

        scaled = (self.excess - margin) / max(self.error, 1e-12)
        return float(t.cdf(scaled, self.freedom)), float(t.sf(scaled, self.freedom))

    def bounds(self) -> tuple[float, float]:
        from scipy.stats import t

        reach = t.ppf(1 - ALPHA, self.freedom) * self.error
        return self.excess - reach, self.excess + reach


class _RatioOfMeans(NamedTuple):
    """A test of log(mean of `reference` / mean of `errors`), paired by image.

    The excess is below a margin m if the mean of exp(m) · errors − reference is positive: a test of one mean
    (Fieller 1954). It must be significant by Student's t, and by t corrected for skewness (Hall 1992, "On the
    removal of skewness by transformation") with `TAIL` times the sample skewness.
    """

    errors: np.ndarray
    reference: np.ndarray

    @property
    def excess(self) -> float:
        return math.log(max(self.reference.mean(), 1e-12) / max(self.errors.mean(), 1e-12))

    def p_values(self, margin: float) -> tuple[float, float]:
        from scipy.stats import t

        below, above = self._statistics(margin)
        freedom = len(self.errors) - 1
        return float(t.sf(below, freedom)), float(t.cdf(above, freedom))

    def _statistics(self, margin: float) -> tuple[float, float]:
        values = math.exp(margin) * self.errors - self.reference
        count, spread = len(values), values.std(ddof=1)
        if not spread > 1e-12 * (self.errors.mean() + self.reference.mean()):
            certain = math.inf * np.sign(values.mean()) if values.mean() else 0.0
            return certain, certain
        plain = values.mean() / spread
        skewness = TAIL * np.mean((values - values.mean()) ** 3) / spread**3
        hall = plain + skewness * plain**2 / 3 + skewness**2 * plain**3 / 27 + skewness / (6 * count)
        both = math.sqrt(count) * plain, math.sqrt(count) * hall
        return min(both), max(both)

    def bounds(self) -> tuple[float, float]:
        from scipy.optimize import brentq
        from scipy.stats import t

        quantile, ends = t.ppf(1 - ALPHA, len(self.errors) - 1), []
        for which, sign in ((1, -1), (0, 1)):  # the margins at which one statistic is just significant

            def beyond(margin: float, which: int = which, sign: int = sign) -> float:
                return float(np.clip(sign * self._statistics(margin)[which] - quantile, -1e6, 1e6))

            inside, outside = self.excess, self.excess + sign * 20.0
            ends.append(brentq(beyond, inside, outside, xtol=1e-9) if beyond(outside) > 0 else outside)
        return ends[0], ends[1]


def _error_test(unlearned: Sample, retrained: Sequence[Sample]) -> _RatioOfMeans:
    reference = np.asarray(np.mean([sample[0] for sample in retrained], axis=0, dtype=np.float64))
    return _RatioOfMeans(np.asarray(unlearned[0], np.float64), reference)


def _accuracy_test(unlearned: Sample, retrained: Sequence[Sample]) -> _Normal:
    right, classes = np.asarray(unlearned[0], np.float64), np.asarray(unlearned[1])
    difference = right - np.mean([sample[0] for sample in retrained], axis=0, dtype=np.float64)
    return _stratified(difference, classes)


def accuracy_interval(right: np.ndarray, classes: np.ndarray) -> tuple[float, float, float]:
    """Return the balanced accuracy with its two-sided 95% interval."""
    from scipy.stats import t

    test = _stratified(np.asarray(right, np.float64), classes)
    reach = t.ppf(1 - ALPHA / 2, test.freedom) * test.error
    return test.excess, test.excess - reach, test.excess + reach


def _stratified(values: np.ndarray, classes: np.ndarray) -> _Normal:
    """Return the mean over classes of each class's mean.

    All classes together get one image that differs, as in Agresti & Min (2005): equal answers are not
    certainty.
    """
    ids, variance, means = np.unique(classes), 0.0, []
    for class_id in ids:
        own = values[classes == class_id]
        means.append(own.mean())
        squares = np.square(own - own.mean()).sum() + 1 / len(ids)
        variance += squares / max(len(own) - 1, 1) / len(own)
    return _Normal(float(np.mean(means)), math.sqrt(variance) / len(ids), max(len(values) - len(ids), 1))


def _auc_test(unlearned: Sample, retrained: Sequence[Sample]) -> _Normal:
    """Compare correlated areas under ROC curves (DeLong et al. 1988)."""
    placements = [[_placements(sample) for sample in models] for models in ([unlearned], retrained)]
    member, other = (
        np.mean([p[side] for p in placements[0]], axis=0) - np.mean([p[side] for p in placements[1]], axis=0)
        for side in (0, 1)
    )
    variance = member.var(ddof=1) / len(member) + other.var(ddof=1) / len(other)
    return _Normal(float(member.mean()), math.sqrt(variance), min(len(member), len(other)) - 1)


def _placements(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Return by image the share of the other kind's images that a threshold would separate from it.

    For a member these are other images with a greater error, for another image members with a smaller one;
    ties count half.
    """
    found = []
    for values, against in (sample, sample[::-1]):
        order = np.sort(against)
        less, not_more = (np.searchsorted(order, values, side) for side in ("left", "right"))
        found.append((less + not_more) / 2 / len(order))
    return 1 - found[0], found[1]


_TESTS: Mapping[Measure, Callable[[Sample, Sequence[Sample]], Any]] = {
    "error": _error_test, "accuracy": _accuracy_test, "auc": _auc_test,
}  # fmt: skip
