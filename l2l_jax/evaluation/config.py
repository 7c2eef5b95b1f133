"""The part of the configuration that says what is restored and measured."""

import dataclasses
from typing import Literal

import numpy as np

from l2l_jax.evaluation.features.config import NetworksConfig
from l2l_jax.operators import HOLES


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(NetworksConfig):
    """What is restored, and what the picture shows.

    Attributes:
      hole: what is missing: "centre", "border", or a strip at the "left", "right", "top" or
        "bottom".
      hole_width: width of the hole, border or strip in pixels.
      batch_size: images restored per compiled call.
      picture_per_class: images of each class in the picture, of at most 10 classes of a set.
      features: where FID, Inception Score and accuracy come from: "classifier", a small one that is trained
        on the spot, for few classes of small images; "none": they are left out.
      networks, inception, resnet50, clip, resize, network_batch_size: see `NetworksConfig`.
    """

    hole: Literal["centre", "border", "left", "right", "top", "bottom"] = "centre"
    hole_width: int = 8
    batch_size: int = 128
    picture_per_class: int = 2
    features: Literal["classifier", "none"] = "classifier"

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
