"""Machine unlearning for image-to-image generative models, in JAX and Flax.

The objective for your own training code:

    from l2l_jax import encoder_unlearning_loss, unlearning_inputs, unlearning_loss

Importing these loads JAX and neither data nor evaluation libraries; importing `l2l_jax` alone does
not even load JAX, so that processes which only read data can do without it.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what `__getattr__` imports when it is first used
    from l2l_jax.losses import (
        UnlearningInputs,
        encoder_unlearning_loss,
        feature_distance,
        max_loss,
        noise_features,
        noise_images,
        noisy_label_loss,
        random_encoder_loss,
        retain_label_loss,
        unlearning_inputs,
        unlearning_loss,
    )

__version__ = "0.1.0"

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


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(importlib.import_module("l2l_jax.losses"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
