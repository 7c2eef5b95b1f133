"""KLoM: how far the errors of an unlearned model are from those of retrained models, image by image.

After Georgiev et al. 2024, arXiv 2410.23232, and EasyDUB, arXiv 2602.16400, with log errors in place of
margins, and Gaussians in place of histograms, for which a few models suffice.
"""

from collections.abc import Sequence

import numpy as np

from l2l_jax.evals.intervals import Interval, mean_interval

LEAST_ERROR = 1e-12  # smaller masked MSEs count as this one
LARGEST = 100.0  # greatest divergence of an image, in nats; greater ones count as this one


def klom(unlearned: Sequence[np.ndarray], retrained: Sequence[np.ndarray]) -> np.ndarray:
    """Compute the KL divergence of unlearned models' log errors from those of retrained models, by image.

    Both are Gaussians over models. Their variances are means over images, since a few models say little about
    that of a single one; a single unlearned model is given the variance of the retrained ones.

    Args:
      unlearned: Masked MSEs `[image]` of one or more models.
      retrained: Those of at least two.

    Returns:
      Divergences in nats `[image]`.
    """
    (own, own_variance), (reference, variance) = _moments(unlearned), _moments(retrained)
    return _divergence(own - reference, own_variance if len(unlearned) > 1 else variance, variance)


def klom_of_retrained(retrained: Sequence[np.ndarray]) -> np.ndarray:
    """Compute the mean divergence of each retrained model from the others, by image: what chance gives."""
    variance = _moments(retrained)[1]
    held_out = []
    for number, errors in enumerate(retrained):
        others = [x for other, x in enumerate(retrained) if other != number]
        held_out.append(_divergence(_moments([errors])[0] - _moments(others)[0], variance, variance))
    return np.mean(held_out, axis=0)


def intervals(models: dict[str, Sequence[np.ndarray]]) -> dict[str, Interval]:
    """Return means over images with 95% intervals of "original", "unlearned" and "retrained" models."""
    never = models["retrained"]
    found = {role: klom(errors, never) for role, errors in models.items() if role != "retrained"}
    return {role: mean_interval(x) for role, x in {**found, "retrained": klom_of_retrained(never)}.items()}


def _moments(errors: Sequence[np.ndarray]) -> tuple[np.ndarray, float]:
    """Return the mean log error of each image, and the variance over models, if there are several."""
    logs = np.log(np.maximum(np.asarray(errors, np.float64), LEAST_ERROR))
    variance = logs.var(axis=0, ddof=1).mean() if len(logs) > 1 else 0.0
    return logs.mean(axis=0), max(float(variance), LEAST_ERROR)


def _divergence(difference: np.ndarray, variance: float, reference: float) -> np.ndarray:
    """Return KL(N(difference, variance) ‖ N(0, reference))."""
    found = (np.log(reference / variance) + (variance + difference**2) / reference - 1) / 2
    return np.minimum(found, LARGEST)
