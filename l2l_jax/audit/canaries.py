"""Canaries: how well reconstructions fit marks that were planted before the original model was trained.

After arXiv 2502.04260. A model sees the surroundings of marks alone, so it restores them from memory or not
at all. What is expected of a model without memory is measured, not assumed: as many images of the same
classes have marks that were never planted.
"""

from typing import Any

import numpy as np

from l2l_jax.data.canaries import Marked, covered, mark
from l2l_jax.data.records import Subset
from l2l_jax.data.splits import canaries
from l2l_jax.errors import UserError
from l2l_jax.evals.config import EvaluationSetup
from l2l_jax.evals.image_set import ImageSet

CANARIES = "canaries"  # name of the set of images in measurements


class Canaries:
    """The canaries of an experiment without their marks, and images to compare with.

    Args:
      config: The experiment.
      source: Its training images.
      mask: Bool `[height, width]`, True where pixels are missing.

    Raises:
      UserError: The mask hides no mark.
    """

    def __init__(self, config: EvaluationSetup, source: Marked, mask: np.ndarray):
        indices = np.concatenate(list(canaries(config.data, source).values()))
        self.images = ImageSet(config, Subset(source.unmarked, indices), CANARIES)
        middle = (covered(len(mask)),) * 2
        self._hidden = np.zeros_like(mask)
        self._hidden[middle] = mask[middle]
        if not self._hidden.any():
            raise UserError(
                "Canaries have their marks in the middle of images, which the first of config.evaluate.tasks "
                "does not mask: choose a task such as centre_8."
            )
        self._marks = np.stack([mark(int(index), len(mask))[mask[middle]] for index in indices])

    def measure(self, reconstructions: Any, params: Any) -> dict[str, np.ndarray]:
        """Measure the fit of each image's own mark to its reconstruction, see `fit`; unreadable ones have 0.

        `reconstructions` is a function as `Inpainter.over`.
        """
        scores, found = np.zeros((2, len(self.images)))
        for originals, inpainted in reconstructions(params, self.images, CANARIES):
            residuals, own = (inpainted - originals.images)[:, self._hidden].mean(-1), originals.indices
            scores[own], found[own] = fit(residuals, self._marks, own)
        return {"score": scores, "found": found}


def fit(residuals: np.ndarray, marks: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compare how well reconstructions fit their own marks and all others.

    Args:
      residuals: Reconstructions minus images without marks, `[image, pixel]`.
      marks: `[mark, pixel]`.
      own: Number of each image's own mark `[image]`.

    Returns:
      Minus the correlation with the own mark, in standard deviations from those with the others; and 1 where
      it is the greatest of all, otherwise 0; both `[image]`.
    """
    correlations = _standardized(residuals) @ _standardized(marks).T
    rows = np.arange(len(own))
    fits = correlations[rows, own]
    correlations[rows, own] = np.nan
    spread = np.maximum(np.nanstd(correlations, axis=1), 1e-12)
    scores = (np.nanmean(correlations, axis=1) - fits) / spread
    return scores, (fits > np.nanmax(correlations, axis=1)).astype(float)


def split_sets(values: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return values of marked images and of the others, by set, from those of all `Canaries`."""
    parts = np.split(values, 4)
    return {"forget": (parts[0], parts[1]), "retain": (parts[2], parts[3])}


def _standardized(rows: np.ndarray) -> np.ndarray:
    centered = rows - rows.mean(axis=1, keepdims=True, dtype=np.float64)
    return centered / np.maximum(np.linalg.norm(centered, axis=1, keepdims=True), 1e-12)
