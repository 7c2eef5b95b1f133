"""Canaries: correlation of reconstructions with marks planted in the data that trained the original model.

After arXiv 2502.04260. A model's inputs contain only the surroundings of a mark, so it can reconstruct the
mark only from memory. The baseline without memory is measured, not assumed: an equal number of images of the
same classes are compared with marks that were never planted.
"""

from __future__ import annotations  # jaxtyping is not needed at run time

from typing import TYPE_CHECKING, Any

import numpy as np

from l2l_jax.data.canaries import Marked, covered, mark
from l2l_jax.data.records import Subset
from l2l_jax.data.splits import canaries
from l2l_jax.errors import UserError
from l2l_jax.evals.config import EvaluationSetup
from l2l_jax.evals.image_set import ImageSet

if TYPE_CHECKING:
    from jaxtyping import Float, Int

CANARIES = "canaries"  # name of the image set in measurements


class Canaries:
    """Canary images of an experiment without their marks, and control images.

    Args:
      config: Config of the experiment.
      source: Its training images.
      mask: Bool `[height, width]`, True where pixels are missing.

    Raises:
      UserError: The mask does not cover the marks.
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
        """Measure how well each image's own mark fits its reconstruction, see `fit`; 0 for unreadable images.

        `reconstructions` is a function like `Inpainter.over`.
        """
        scores, is_best = np.zeros((2, len(self.images)))
        for originals, inpainted in reconstructions(params, self.images, CANARIES):
            residuals, own = (inpainted - originals.images)[:, self._hidden].mean(-1), originals.indices
            scores[own], is_best[own] = fit(residuals, self._marks, own)
        return {"score": scores, "found": is_best}


def fit(
    residuals: Float[np.ndarray, "image pixel"],
    marks: Float[np.ndarray, "mark pixel"],
    own: Int[np.ndarray, " image"],
) -> tuple[np.ndarray, np.ndarray]:
    """Compare the correlation of reconstructions with their own marks and with all other marks.

    Args:
      residuals: Reconstructions minus images without marks, `[image, pixel]`.
      marks: Marks, `[mark, pixel]`.
      own: Index of each image's own mark, `[image]`.

    Returns:
      Scores and indicators, both `[image]`. The score is minus the correlation with the own mark, in standard
      deviations from the correlations with the others. The indicator is 1 where the correlation with the own
      mark is the greatest, otherwise 0.
    """
    correlations = _standardized(residuals) @ _standardized(marks).T
    rows = np.arange(len(own))
    fits = correlations[rows, own]
    correlations[rows, own] = np.nan
    spread = np.maximum(np.nanstd(correlations, axis=1), 1e-12)
    scores = (np.nanmean(correlations, axis=1) - fits) / spread
    return scores, (fits > np.nanmax(correlations, axis=1)).astype(float)


def split_sets(values: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Split values of all `Canaries` into those of marked images and of control images, by set."""
    parts = np.split(values, 4)
    return {"forget": (parts[0], parts[1]), "retain": (parts[2], parts[3])}


def _standardized(rows: np.ndarray) -> np.ndarray:
    centered = rows - rows.mean(axis=1, keepdims=True, dtype=np.float64)
    return centered / np.maximum(np.linalg.norm(centered, axis=1, keepdims=True), 1e-12)
