"""Depth of forgetting: where an unlearned model stands between the original and one that never saw.

    depth = (a_original − a_unlearned) / (a_original − a_retrained)

of a quantity `a` that is greater the more a model knows of the forget images, after the same attack on all
three: 0 as the original, 1 as if never seen, above 1 further away than that.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from l2l_jax.evals.intervals import Interval, bootstrap

Measure = Literal["accuracy", "error", "auc"]
"""What knowledge is read from: "accuracy", the share of images whose class is read rightly; "error", minus
the logarithm of the mean mask error; "auc", how well members are told from others by their error."""

Sample = Sequence[np.ndarray]
"""What was measured of a model: for "accuracy" and "error" one array `[image]`, for "auc" the mask errors of
members and of others."""


class SeedSpread(NamedTuple):
    """How much retrained models differ by their seed alone.

    Attributes:
      deviation: standard deviation of `a` over models that were retrained with different seeds.
      count: how many there were; at least two.
    """

    deviation: float
    count: int

    def difference(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Draws of the difference between two such models: Student's t, for so few are known."""
        return math.sqrt(2) * self.deviation * rng.standard_t(self.count - 1, shape)


class Depth(NamedTuple):
    """Depth of forgetting by one measure.

    Attributes:
      value, low, high: the depth and its 95 % interval, over images and, where their spread is known, over
        seeds of the retrained model.
      gap: how far original and retrained model are apart, with its interval over images.
      over_images: ends of the depth's interval over images alone.
    """

    value: float
    low: float
    high: float
    gap: Interval
    over_images: tuple[float, float]

    @property
    def resolved(self) -> bool:
        """Whether the images tell the retrained model from the original, and images and seeds the unlearned
        one from at least one of the two: an interval that holds both 0 and 1 says nothing."""
        return self.gap.low > 0 and not self.low <= 0 < 1 <= self.high

    def describe(self) -> dict[str, Any]:
        """JSON-able; None where a number is not finite."""
        return {
            **dict(zip(("value", "low", "high"), plain(self[:3]), strict=True)),
            "over_images": plain(self.over_images),
            "resolved": self.resolved,
        }


def auc(members: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Probability that a member's error `[…, member]` is less than another's `[…, other]`; ties count half.

    The area under the ROC curve, by the sum of ranks (Mann & Whitney 1947).
    """
    from scipy.stats import rankdata  # takes a second to load

    count = members.shape[-1]
    ranks = rankdata(np.concatenate([-members, -others], axis=-1), axis=-1)
    total = ranks[..., :count].sum(-1) - count * (count + 1) / 2
    return total / (count * others.shape[-1])


MEASURES: Mapping[Measure, Callable[..., np.ndarray]] = {
    "accuracy": lambda right: right.mean(-1),
    "error": lambda mse: -np.log(np.maximum(mse.mean(-1), 1e-12)),
    "auc": auc,
}
"""`a` of each measure, of arrays whose last axis is that of images."""


def depth(
    measure: Measure, original: Sample, unlearned: Sample, retrained: Sample, seeds: SeedSpread | None = None
) -> Depth:
    """Depth of an unlearned model.

    Args:
      measure: what to read it from.
      original, unlearned, retrained: measured of the three models on the same images; these are resampled
        together.
      seeds: how much the seed of the retrained model matters, where that is known: the interval then holds
        the depth of another retrained model, 1, as often as it should.

    Raises:
      ValueError: the models were not measured on equally many images.
    """
    counts = [len(values) for values in original]
    if any([len(values) for values in sample] != counts for sample in (unlearned, retrained)):
        raise ValueError("the three models must be measured on the same images")
    samples = [[np.asarray(values, np.float64) for values in s] for s in (original, unlearned, retrained)]

    def known(*chosen):
        return [
            MEASURES[measure](*(values[i] for values, i in zip(sample, chosen, strict=True)))
            for sample in samples
        ]

    def gap(*chosen):
        before, _, never = known(*chosen)
        return before - never

    def share(*chosen, difference=None):
        before, after, never = known(*chosen)
        if difference is not None:
            never = never + difference(never.shape)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(before > never, (before - after) / (before - never), np.nan)

    value, *ends = bootstrap(share, *counts)
    over_images = tuple(ends)
    if seeds is not None:
        difference = functools.partial(seeds.difference, np.random.default_rng(0))
        _, *ends = bootstrap(functools.partial(share, difference=difference), *counts)
    return Depth(value, *ends, bootstrap(gap, *counts), over_images)


def plain(values: Iterable[float]) -> list[float | None]:
    """JSON-able numbers: None for those that are not finite."""
    return [x if math.isfinite(x) else None for x in values]
