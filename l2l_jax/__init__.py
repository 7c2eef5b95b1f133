"""Machine unlearning for image-to-image generative models, in JAX and Flax.

The objective for your own training code:

    from l2l_jax import encoder_unlearning_loss, unlearning_inputs

Importing it loads JAX and neither data nor evaluation libraries.
"""

from l2l_jax.objectives import (
    UnlearningInputs,
    encoder_unlearning_loss,
    feature_distance,
    noise_images,
    unlearning_inputs,
)

__version__ = "0.1.0"

__all__ = [
    "UnlearningInputs",
    "encoder_unlearning_loss",
    "feature_distance",
    "noise_images",
    "unlearning_inputs",
]
