"""How well a model restores a set: the figures of the paper's tables."""

from collections.abc import Mapping, Sequence

import numpy as np

from l2l_jax.evaluation import metrics
from l2l_jax.evaluation.features.digits import DigitClassifier, HoleClassifier
from l2l_jax.evaluation.image_set import Images
from l2l_jax.evaluation.statistics import frechet_distance, gaussian_statistics, inception_score

METRICS = ("psnr", "mse", "fid", "inception_score", "accuracy")
"""The figures of a set, in the order in which they are shown; without a classifier the first two."""

CLASSIFIER_SIDE = 32
"""Side in pixels to which larger images are shrunk, about, for the classifiers."""

LEAST_IMAGES = 10
"""Test images of a set that the classifiers' figures need: the Inception Score has ten parts."""


Observed = Mapping[str, np.ndarray]
"""What is kept of some images, by name: arrays that start with the image axis."""


class Evaluator:
    """Measures restorations of one hole, block by block.

    Args:
      hole: bool `[height, width]`.
      value_range: range of all images.
      train: real images that classifiers are trained on; None: there are none, and no figures of theirs.
    """

    def __init__(self, hole: np.ndarray, value_range: tuple[float, float], train: Images | None):
        self._hole, self._value_range = hole, value_range
        self._every = max(1, len(hole) // CLASSIFIER_SIDE)
        self._network = self._hole_classifier = None
        if train is not None:
            images = self._shrunk(train.images)
            self._network = DigitClassifier(images, train.labels)
            covered = self._shrunk(hole[None, ..., None].astype(np.float32))[0, ..., 0]
            self._hole_classifier = HoleClassifier(images, train.labels, covered == covered.max())

    @property
    def has_classifiers(self) -> bool:
        """Whether `figures` holds more than psnr and mse."""
        return self._network is not None

    def observe(self, originals: Images, restored: np.ndarray) -> Observed:
        """What `figures` needs to know of some images.

        Args:
          originals: the images.
          restored: their restorations `[image, height, width, channel]`.
        """
        observed = {"mse": metrics.hole_mse(originals.images, restored, self._hole)}
        if self._network is not None:
            small = self._shrunk(restored)
            observed["original_features"], _ = self._network(self._shrunk(originals.images))
            observed["features"], observed["probabilities"] = self._network(small)
            observed["right"] = self._hole_classifier.right(small, originals.labels)
        return observed

    def figures(self, blocks: Sequence[Observed]) -> dict[str, float]:
        """The figures `METRICS` of a set.

        psnr (dB, mean over images) and mse inside the hole; fid between originals and restorations
        in the features of a classifier; inception_score of the restorations under it; accuracy: how often
        the class can be read from the restored hole alone.

        Args:
          blocks: what was observed of all its images, in their order.
        """
        whole = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
        figures = {
            "psnr": float(metrics.psnr(whole["mse"], self._value_range).mean()),
            "mse": float(whole["mse"].mean()),
        }
        if self._network is not None:
            sets = (gaussian_statistics(whole[name]) for name in ("original_features", "features"))
            distance, score = frechet_distance(*sets), inception_score(whole["probabilities"])[0]
            figures |= {"fid": distance, "inception_score": score, "accuracy": float(whole["right"].mean())}
        return figures

    def _shrunk(self, images: np.ndarray) -> np.ndarray:
        """Means of squares of pixels; images that are small already stay as they are."""
        every = self._every
        if every == 1:
            return images
        count, side = len(images), images.shape[1] // every
        squares = images[:, : side * every, : side * every].reshape(count, side, every, side, every, -1)
        return squares.mean(axis=(2, 4))
