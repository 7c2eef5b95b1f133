"""Unlearning objectives; they import JAX, and nothing of the package that imports more."""

from l2l_jax.losses import (
    feature_distance,
    max_loss,
    noisy_label_loss,
    random_encoder_loss,
    retain_label_loss,
    unlearning_loss,
)
from l2l_jax.methods.encoder_inputs import (
    UnlearningInputs,
    encoder_unlearning_loss,
    unlearning_inputs,
)
from l2l_jax.methods.noise import noise_features, noise_images

__all__ = [
    "UnlearningInputs",
    "encoder_unlearning_loss",
    "feature_distance",
    "max_loss",
    "noise_features",
    "noise_images",
    "noisy_label_loss",
    "random_encoder_loss",
    "retain_label_loss",
    "unlearning_inputs",
    "unlearning_loss",
]
