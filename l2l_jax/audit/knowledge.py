"""Per-image measures that do not count as knowledge what reconstructions contain without knowing the image.

Calibrated error: a confident wrong reconstruction has a larger error than a blank one, but does not know
less; whoever has the model can shrink what it draws. Credit: a classifier may assign all blank
reconstructions to the same class, which is not recognition.
"""

from __future__ import annotations  # jaxtyping is not needed at run time

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Shaped

    Images = Shaped[np.ndarray, "image height width channel"]
    PerImage = Float[np.ndarray, " image"]

VERSION = 2  # stored measurements of attacks of another version are repeated


class Moments(NamedTuple):
    """Means over the masked pixels and channels of images, relative to a constant image m; float64 `[image]`.

    With a reconstruction x̂ of x: `square` is the mean of (x̂ − m)², and `product` of (x̂ − m) · (x − m).
    """

    square: PerImage
    product: PerImage


def moments(
    originals: Images,
    inpainted: Images,
    constant: Shaped[np.ndarray, "height width channel"],
    mask: Bool[np.ndarray, "height width"],
) -> Moments:
    """Return the moments of reconstructions relative to a constant image; all are in the model's range."""
    away, truth = (np.asarray(x, np.float64)[:, mask] - constant[mask] for x in (inpainted, originals))
    return Moments(np.square(away).mean(axis=(1, 2)), (away * truth).mean(axis=(1, 2)))


def calibrated_errors(mse: PerImage, moments: Moments) -> PerImage:
    """Return the masked MSE of each image after shrinking the reconstructions toward the constant image m.

    The reconstructions of the set are replaced by m + a · (x̂ − m), with the share a in [0, 1] that minimizes
    their mean error.
    """
    square, product = moments
    share = np.clip(product.sum() / max(square.sum(), 1e-12), 0, 1)
    return mse + 2 * (1 - share) * product - (1 - share**2) * square


def credit(predicted: Int[np.ndarray, " image"], labels: Int[np.ndarray, " image"]) -> PerImage:
    """Return the correctness of each image, corrected for guessing among the k classes in `labels`.

    1 for the image's class, −1 / (k − 1) for another of these classes, 0 for any other class ("formula
    scoring", Frary 1988). Predictions that do not depend on the image have a mean of 0 over balanced classes.
    """
    classes = np.unique(labels)
    right = predicted == labels
    wrong = np.isin(predicted, classes) & ~right
    return right - wrong / max(len(classes) - 1, 1)
