"""Unlearning objectives; they import JAX, and nothing of the package that imports more."""

from l2l_jax.objectives.encoder import (
    UnlearningInputs,
    encoder_unlearning_loss,
    feature_distance,
    unlearning_inputs,
)
from l2l_jax.objectives.noise import noise_images

__all__ = [
    "UnlearningInputs",
    "encoder_unlearning_loss",
    "feature_distance",
    "noise_images",
    "unlearning_inputs",
]
