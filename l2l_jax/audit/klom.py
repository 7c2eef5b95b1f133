"""KLoM: per-image KL divergence between the errors of unlearned and of retrained models.

After Georgiev et al. 2024, arXiv 2410.23232, and EasyDUB, arXiv 2602.16400, with log errors instead of
margins, and Gaussians instead of histograms, because Gaussians need only a few models.
"""

from __future__ import annotations  # jaxtyping is not needed at run time

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from l2l_jax.evals.intervals import Interval, mean_interval

if TYPE_CHECKING:
    from jaxtyping import Float

    PerImage = Float[np.ndarray, " image"]

LEAST_ERROR = 1e-12  # lower bound to which masked MSEs are clipped
LARGEST = 100.0  # upper bound to which the divergence of an image is clipped, in nats


def klom(unlearned: Sequence[PerImage], retrained: Sequence[PerImage]) -> PerImage:
    """Compute the KL divergence of unlearned models' log errors from those of retrained models, by image.

    Both are Gaussians over models. Their variances are averaged over images, because a few models do not
    suffice to estimate that of a single image; a single unlearned model gets the variance of the retrained
    models.

    Args:
      unlearned: Masked MSEs `[image]` of one or more models.
      retrained: Masked MSEs `[image]` of at least two models.

    Returns:
      Divergences in nats `[image]`.
    """
    (own, own_variance), (reference, variance) = _moments(unlearned), _moments(retrained)
    return _divergence(own - reference, own_variance if len(unlearned) > 1 else variance, variance)


def klom_of_retrained(retrained: Sequence[PerImage]) -> PerImage:
    """Compute the mean divergence of each retrained model from the others, by image: the chance level."""
    variance = _moments(retrained)[1]
    held_out = []
    for number, errors in enumerate(retrained):
        others = [x for other, x in enumerate(retrained) if other != number]
        held_out.append(_divergence(_moments([errors])[0] - _moments(others)[0], variance, variance))
    return np.mean(held_out, axis=0)


def intervals(models: dict[str, Sequence[PerImage]]) -> dict[str, Interval]:
    """Return means over images with 95% intervals for "original", "unlearned" and "retrained" models."""
    retrained = models["retrained"]
    divergences = {role: klom(errors, retrained) for role, errors in models.items() if role != "retrained"}
    divergences["retrained"] = klom_of_retrained(retrained)
    return {role: mean_interval(values) for role, values in divergences.items()}


def _moments(errors: Sequence[np.ndarray]) -> tuple[np.ndarray, float]:
    """Return the mean log error of each image and the variance over models (near 0 for a single model)."""
    logs = np.log(np.maximum(np.asarray(errors, np.float64), LEAST_ERROR))
    variance = logs.var(axis=0, ddof=1).mean() if len(logs) > 1 else 0.0
    return logs.mean(axis=0), max(float(variance), LEAST_ERROR)


def _divergence(difference: np.ndarray, variance: float, reference: float) -> np.ndarray:
    """Return KL(N(difference, variance) ‖ N(0, reference))."""
    divergence = (np.log(reference / variance) + (variance + difference**2) / reference - 1) / 2
    return np.minimum(divergence, LARGEST)
