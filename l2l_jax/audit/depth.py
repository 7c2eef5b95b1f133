"""Depth of forgetting: a descriptive scale from the original to the retrained model.

    depth = (a_original − a_unlearned) / (a_original − a_retrained)

of a quantity `a` that is greater the more a model knows of the forget images: 0 as the original, 1 as if
never seen, above 1 further away than that. It describes; the verdict does not use it.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from l2l_jax.audit.comparison import MARGINS, Measure, Sample, auc
from l2l_jax.evals.intervals import Interval, bootstrap


class Depth(NamedTuple):
    """Depth of forgetting by one measure.

    Attributes:
      value, low, high: Depth and its 95% interval over images.
      gap: How much more the original knows than the retrained model, with its interval.
      resolved: Whether original and retrained model clearly differ, by more than the measure's margin.
    """

    value: float
    low: float
    high: float
    gap: Interval
    resolved: bool

    def describe(self) -> dict[str, Any]:
        """Return value, interval and `resolved`, JSON-able; None where a number is not finite."""
        numbers = dict(zip(("value", "low", "high"), plain(self[:3]), strict=True))
        return {**numbers, "resolved": self.resolved}


KNOWLEDGE: Mapping[Measure, Callable[..., np.ndarray]] = {
    "error": lambda mse: -np.log(np.maximum(mse.mean(-1), 1e-12)),
    "accuracy": lambda right: right.mean(-1),
    "auc": auc,
}
"""`a` of each measure, of arrays whose last axis is that of images."""


def depth(measure: Measure, original: Sample, unlearned: Sample, retrained: Sample) -> Depth:
    """Return the depth of an unlearned model.

    Args:
      measure: What the samples are, see `comparison.Sample`; class ids are not used.
      original: Measurements of the original model; the images of the three models are resampled together.
      unlearned: Measurements of the unlearned model on the same images.
      retrained: Measurements of the retrained model on the same images.

    Raises:
      ValueError: The models were not measured on equally many images.
    """
    used = 2 if measure == "auc" else 1
    samples = [[np.asarray(x, np.float64) for x in s[:used]] for s in (original, unlearned, retrained)]
    counts = [len(values) for values in samples[0]]
    if any([len(values) for values in sample] != counts for sample in samples):
        raise ValueError("the three models must be measured on the same images")

    def known(*chosen):
        return [
            KNOWLEDGE[measure](*(values[i] for values, i in zip(sample, chosen, strict=True)))
            for sample in samples
        ]

    def gap(*chosen):
        before, _, never = known(*chosen)
        return before - never

    def share(*chosen):
        before, after, never = known(*chosen)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(before > never, (before - after) / (before - never), np.nan)

    found = bootstrap(gap, *counts)
    return Depth(*bootstrap(share, *counts), found, found.low > MARGINS[measure])


def plain(values: Iterable[float]) -> list[float | None]:
    """Return JSON-able numbers: None for those that are not finite."""
    return [float(x) if math.isfinite(x) else None for x in values]
