"""Depth of forgetting: a descriptive scale from the original to the retrained model.

    depth = (a_original − a_unlearned) / (a_original − a_retrained)

of a quantity `a` that is greater the more a model knows of the forget images: 0 as the original, 1 as if
never seen, above 1 further away than that. It describes; the verdict does not use it.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from l2l_jax.audit.comparison import MARGINS, Measure, Sample, auc
from l2l_jax.evals.intervals import bootstrap

KNOWLEDGE: Mapping[Measure, Callable[..., np.ndarray]] = {
    "error": lambda mse: -np.log(np.maximum(mse.mean(-1), 1e-12)),
    "accuracy": lambda right: right.mean(-1),
    "auc": auc,
}
"""`a` of each measure, of arrays whose last axis is that of images."""


def depth(measure: Measure, *samples: Sample) -> dict[str, Any]:
    """Return the depth of an unlearned model.

    Args:
      measure: What the samples are, see `comparison.Sample`; class ids are not used.
      samples: Measurements of the original, the unlearned and the retrained model on the same images, which
        are resampled together.

    Returns:
      JSON-able: "value" and its 95% interval over images, "low" and "high"; "resolved": whether original and
      retrained model clearly differ, by more than the measure's margin.
    """
    used = 2 if measure == "auc" else 1
    arrays = [[np.asarray(values, np.float64) for values in sample[:used]] for sample in samples]

    def known(chosen):
        return (
            KNOWLEDGE[measure](*(values[i] for values, i in zip(sample, chosen, strict=True)))
            for sample in arrays
        )

    def gap(*chosen):
        before, _, never = known(chosen)
        return before - never

    def share(*chosen):
        before, after, never = known(chosen)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(before > never, (before - after) / (before - never), np.nan)

    counts = [len(values) for values in arrays[0]]
    value, low, high = plain(bootstrap(share, *counts))
    return {
        "value": value,
        "low": low,
        "high": high,
        "resolved": bootstrap(gap, *counts).low > MARGINS[measure],
    }


def plain(values: Iterable[float]) -> list[float | None]:
    """Return JSON-able numbers: None for those that are not finite."""
    return [float(x) if math.isfinite(x) else None for x in values]
