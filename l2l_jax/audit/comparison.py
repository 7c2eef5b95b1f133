"""Non-inferiority tests of an unlearned model against models retrained without the forget images.

Each test compares two models on the same test images by one measure. Its value is the *excess*: how much more
the unlearned model knows than the retrained model(s), in units of the measure:

    error     log(calibrated MSE of the retrained model / that of the unlearned model)
    accuracy  difference in the balanced accuracy of a classifier, corrected for guessing
    auc       difference in the area under the ROC curve of membership inference
    marks     difference in the area under the ROC curve of the canaries' scores
"""

from __future__ import annotations  # jaxtyping is not needed at run time

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped

Measure = Literal["error", "accuracy", "auc", "marks"]
ALPHA = 0.05  # level of every one-sided test
# Probability of a decision with the number of test images or retrained models reported as sufficient
POWER = 0.8
MOST_RETRAINED = 50  # greatest number of retrained models reported as sufficient
# Tolerated excess: the least margin of each measure, fixed before any model was measured
MARGINS: Mapping[Measure, float] = {"error": math.log(1.1), "accuracy": 0.05, "auc": 0.05, "marks": 0.05}
# Factor on the sample skewness, because samples from heavy-tailed distributions underestimate it. Chosen by
# simulation (research/verdict_simulation.py).
TAIL = 2.0
# Measurements of one model, arrays `[…, image]`: for "error" the calibrated MSE; for "accuracy" the credit or
# whether the prediction is correct, and the class IDs; for "auc" and "marks" scores of members, which are
# smaller, and of others
Sample = Sequence[np.ndarray]


class SeedSpread(NamedTuple):
    """Spread of retrained models that differ only in their seed."""

    deviation: float  # standard deviation of the measure over the models; of the log for the error
    count: int  # type: ignore[assignment]  # number of models, at least two; shadows tuple.count

    def margin(self, references: int) -> float:
        """Return the 95% bound on the difference between another seed and the mean of `references` models."""
        from scipy.stats import t  # SciPy is slow to import

        return float(t.ppf(1 - ALPHA, self.count - 1) * self.deviation * math.sqrt(1 + 1 / references))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Result of one test."""

    measure: Measure  # compared measure
    excess: float  # how much more the unlearned model knows; `low` and `high` are its one-sided 95% bounds
    low: float
    high: float
    margin: float  # tolerated excess
    p_holds: float  # p-value of "the excess is at least the margin"
    p_violated: float  # p-value of "the excess is at most the margin"
    images: int  # number of test images
    seeds: SeedSpread | None = None  # spread of retrained models, if known; it widens the margin

    @property
    def holds(self) -> bool:
        """Return whether the unlearned model significantly knows no more than the retrained one."""
        return self.p_holds <= ALPHA

    @property
    def _reach(self) -> float:
        """Return the distance from a margin at which the test is significant with probability `POWER`."""
        from scipy.stats import norm

        return float((self.high - self.low) / 2 * (1 + norm.ppf(POWER) / norm.ppf(1 - ALPHA)))

    def images_needed(self) -> float:
        """Estimate how many test images would decide with probability `POWER`; infinity if none would."""
        distance = abs(self.excess - self.margin)
        with np.errstate(divide="ignore"):
            return float(self.images * np.square(np.divide(self._reach, distance)))

    def retrained_needed(self) -> int | None:
        """Estimate how many retrained models would decide; None if no number would or it is unknown."""
        if self.seeds is None:
            return None
        for count in range(self.seeds.count + 1, MOST_RETRAINED + 1):
            margin = max(MARGINS[self.measure], self.seeds._replace(count=count).margin(count))
            if self.excess - margin >= self._reach:
                return count
        return None

    def describe(self) -> dict[str, Any]:
        """Return all fields as JSON-serializable values."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "seeds"}
        plain = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in values.items()}
        return {**plain, "holds": self.holds}


def compare(
    measure: Measure, unlearned: Sample, retrained: Sequence[Sample], seeds: SeedSpread | None = None
) -> Comparison:
    """Test if the unlearned model knows more than the mean of the retrained models on the same images.

    `seeds` is the spread of retrained models, if known; with several retrained models it is measured.

    Raises:
      ValueError: There is no retrained model, or the models were not measured on the same images.
    """
    counts = [len(values) for values in unlearned]
    if not retrained or any([len(values) for values in sample] != counts for sample in retrained):
        raise ValueError("compared models must be measured on the same images")
    if len(retrained) > 1:
        seeds = SeedSpread(deviation(measure, retrained), len(retrained))
    margin = MARGINS[measure]
    if seeds is not None:
        margin = max(margin, seeds.margin(len(retrained)))
    test = TESTS[measure](unlearned, retrained)
    holds, violated = test.p_values(margin)
    images = sum(counts) if TESTS[measure] is _auc_test else counts[0]
    numbers = float(test.excess), *test.bounds(), margin, float(holds), float(violated)
    return Comparison(measure, *numbers, images, seeds)


def deviation(measure: Measure, models: Sequence[Sample]) -> float:
    """Return the standard deviation of the knowledge of several models; see `SeedSpread`."""
    return float(np.std([knowledge(measure, sample) for sample in models], ddof=1))


def knowledge(measure: Measure, sample: Sample) -> float:
    """Return how much a model knows: minus the log of its mean error, its balanced accuracy, or its AUC."""
    if measure == "error":
        return -math.log(max(float(np.mean(sample[0])), 1e-12))
    if measure == "accuracy":
        return float(_stratified(*sample)[0])
    return float(auc(*sample))


def auc(
    members: Float[np.ndarray, "... member"], others: Float[np.ndarray, "... other"]
) -> Float[np.ndarray, ...]:
    """Return the area under the ROC curve (Mann & Whitney 1947).

    This is the probability that a member's error `[…, member]` is less than a nonmember's `[…, other]`; ties
    count half.
    """
    from scipy.stats import mannwhitneyu

    pairs = members.shape[-1] * others.shape[-1]
    return mannwhitneyu(others, members, axis=-1, method="asymptotic").statistic / pairs


def accuracy_interval(
    right: Shaped[np.ndarray, " image"], classes: Shaped[np.ndarray, " image"]
) -> tuple[float, float, float]:
    """Return the balanced accuracy with its two-sided 95% interval."""
    from scipy.stats import t

    accuracy, error, freedom = _stratified(right, classes)
    reach = t.ppf(1 - ALPHA / 2, freedom) * error
    return float(accuracy), float(accuracy - reach), float(accuracy + reach)


class MarginTest(NamedTuple):
    """One-sided tests of an excess `[…]` against any margin by Student's t.

    Given a margin, `statistics` returns two statistics of "the excess is below it", the smaller first;
    `freedom` is their number of degrees of freedom.
    """

    excess: np.ndarray
    statistics: Callable[[float], tuple[np.ndarray, np.ndarray]]
    freedom: int

    def p_values(self, margin: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the p-values of "the excess is at least the margin" and of "it is at most the margin"."""
        from scipy.stats import t

        least, greatest = self.statistics(margin)
        return t.sf(least, self.freedom), t.cdf(greatest, self.freedom)

    def bounds(self) -> tuple[float, float]:
        """Return the two margins at which a statistic becomes significant: the bounds of the excess."""
        from scipy.optimize import brentq
        from scipy.stats import t

        quantile, ends, inside = t.ppf(1 - ALPHA, self.freedom), [], float(self.excess)
        for index, sign in ((1, -1), (0, 1)):

            def beyond(margin: float, index: int = index, sign: int = sign) -> float:
                return float(np.clip(sign * self.statistics(margin)[index] - quantile, -1e6, 1e6))

            outside = inside + sign * 20.0
            if beyond(inside) > 0:  # the errors do not vary, and rounding decides their sign
                ends.append(inside)
            else:
                ends.append(brentq(beyond, inside, outside, xtol=1e-9) if beyond(outside) > 0 else outside)
        return ends[0], ends[1]


def _normal(excess: np.ndarray, error: np.ndarray, freedom: int) -> MarginTest:
    def statistics(margin):
        scaled = (margin - excess) / np.maximum(error, 1e-12)
        return scaled, scaled

    return MarginTest(excess, statistics, freedom)


def _error_test(unlearned: Sample, retrained: Sequence[Sample]) -> MarginTest:
    """Test log(mean of the reference / mean of the errors), paired by image.

    The excess is below a margin m if the mean of exp(m) · errors − reference is positive: a test of one mean
    (Fieller 1954). It must be significant by Student's t, and by t corrected for skewness (Hall 1992, "On the
    removal of skewness by transformation") with `TAIL` times the sample skewness.
    """
    errors = np.asarray(unlearned[0], np.float64)
    reference = np.mean([sample[0] for sample in retrained], axis=0, dtype=np.float64)
    means = errors.mean(-1), reference.mean(-1)
    count = errors.shape[-1]

    def statistics(margin):
        values = math.exp(margin) * errors - reference
        mean, spread = values.mean(-1), values.std(-1, ddof=1)
        centered = values - mean[..., None]
        with np.errstate(divide="ignore", invalid="ignore"):
            skewness = TAIL * (centered * centered * centered).mean(-1) / spread**3
            plain = mean / spread
            hall = plain + skewness * plain**2 / 3 + skewness**2 * plain**3 / 27 + skewness / (6 * count)
            certain = np.where(mean == 0, 0, math.inf * np.sign(mean))
        both = np.where(spread > 1e-12 * sum(means), math.sqrt(count) * np.stack([plain, hall]), certain)
        return both.min(0), both.max(0)

    excess = np.log(np.maximum(means[1], 1e-12) / np.maximum(means[0], 1e-12))
    return MarginTest(excess, statistics, count - 1)


def _accuracy_test(unlearned: Sample, retrained: Sequence[Sample]) -> MarginTest:
    reference = np.mean([sample[0] for sample in retrained], axis=0, dtype=np.float64)
    return _normal(*_stratified(np.asarray(unlearned[0], np.float64) - reference, unlearned[1]))


def _stratified(values: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the mean of the class means, its standard error and its degrees of freedom.

    As in Agresti & Min (2005), one discordant image is added over all classes, because identical predictions
    do not imply certainty.
    """
    ids = np.unique(classes)
    groups = [np.asarray(values, np.float64)[..., classes == class_id] for class_id in ids]
    sizes = np.array([group.shape[-1] for group in groups])
    squares = np.stack([group.var(-1) for group in groups], axis=-1) * sizes + 1 / len(ids)
    variance = np.asarray((squares / np.maximum(sizes - 1, 1) / sizes).sum(-1))
    mean = np.mean([group.mean(-1) for group in groups], axis=0)
    return mean, np.sqrt(variance) / len(ids), max(len(classes) - len(ids), 1)


def _auc_test(unlearned: Sample, retrained: Sequence[Sample]) -> MarginTest:
    """Compare correlated areas under ROC curves (DeLong et al. 1988)."""
    own, *others = (_placements(*sample) for sample in (unlearned, *retrained))
    member, other = (own[side] - np.mean([p[side] for p in others], axis=0) for side in (0, 1))
    variance = member.var(ddof=1) / len(member) + other.var(ddof=1) / len(other)
    return _normal(member.mean(), np.sqrt(variance), min(len(member), len(other)) - 1)


def _placements(members: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each image, the share of the other group on the correct side of it; ties count half."""
    ranks = []
    for values, against in ((members, others), (others, members)):
        order = np.sort(against)
        less, not_more = (np.searchsorted(order, values, side) for side in ("left", "right"))
        ranks.append((less + not_more) / 2 / len(order))
    return 1 - ranks[0], ranks[1]


TESTS: Mapping[Measure, Callable[[Sample, Sequence[Sample]], MarginTest]] = {
    "error": _error_test,
    "accuracy": _accuracy_test,
    "auc": _auc_test,
    "marks": _auc_test,
}
"""Tests by measure; the tests of errors and accuracies accept arrays with more leading axes."""
