"""How well a model restores a set: the figures of the paper's tables."""

import dataclasses
from typing import Literal

import numpy as np

from l2l_jax.data.pipeline import load_images
from l2l_jax.data.sources import Source
from l2l_jax.evaluation import metrics
from l2l_jax.evaluation.features.digits import DigitClassifier, HoleClassifier
from l2l_jax.operators import HOLES

METRICS = ("psnr", "mse", "fid", "inception_score", "accuracy")
"""The figures of a set, in the order in which they are shown."""


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is restored, and what the picture shows.

    Attributes:
      hole: what is missing: "centre", "border", or a strip at the "left", "right", "top" or
        "bottom".
      hole_width: width of the hole, border or strip in pixels.
      batch_size: images restored per compiled call.
      picture_per_class: images of each class in the picture.
    """

    hole: Literal["centre", "border", "left", "right", "top", "bottom"] = "centre"
    hole_width: int = 8
    batch_size: int = 128
    picture_per_class: int = 2

    def __post_init__(self):
        for name in ("hole_width", "batch_size", "picture_per_class"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")

    def hole_mask(self, image_size: int) -> np.ndarray:
        """The hole as a mask `[image_size, image_size]`.

        Raises:
          ValueError: it does not fit the image.
        """
        return HOLES[self.hole](image_size, self.hole_width)


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Test images `[image, height, width, channel]` in the model's range, and their class ids."""

    images: np.ndarray
    labels: np.ndarray


class Evaluator:
    """Measures restorations of one hole with classifiers trained on real images.

    Args:
      train: real images of every class.
      hole: bool `[height, width]`.
      value_range: range of all images.
    """

    def __init__(self, train: Source, hole: np.ndarray, value_range: tuple[float, float]):
        images = load_images(train, value_range)
        self._hole, self._value_range = hole, value_range
        self._network = DigitClassifier(images, train.labels)
        self._hole_classifier = HoleClassifier(images, train.labels, hole)

    def measure(self, originals: ImageSet, restored: np.ndarray) -> dict[str, float]:
        """The figures `METRICS` of a set.

        psnr (dB, mean over images) and mse inside the hole; fid between originals and restorations
        in the features of a digit classifier; inception_score of the restorations under it;
        accuracy: how often the class can be read from the restored hole alone.
        """
        mse = metrics.hole_mse(originals.images, restored, self._hole)
        features, _ = self._network(originals.images)
        restored_features, probabilities = self._network(restored)
        return {
            "psnr": float(metrics.psnr(mse, self._value_range).mean()),
            "mse": float(mse.mean()),
            "fid": metrics.frechet_distance(features, restored_features),
            "inception_score": metrics.inception_score(probabilities)[0],
            "accuracy": self._hole_classifier.accuracy(restored, originals.labels),
        }

    def ceiling(self, originals: ImageSet) -> dict[str, float]:
        """What real images reach: `inception_score` and `accuracy` of the set itself."""
        _, probabilities = self._network(originals.images)
        return {
            "inception_score": metrics.inception_score(probabilities)[0],
            "accuracy": self._hole_classifier.accuracy(originals.images, originals.labels),
        }
