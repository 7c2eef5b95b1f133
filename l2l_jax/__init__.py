"""Machine unlearning for image-to-image generative models, in JAX and Flax.

The objective for your own training code:

    from l2l_jax import encoder_unlearning_loss, unlearning_inputs

Importing these loads JAX and neither data nor evaluation libraries; importing `l2l_jax` alone does
not even load JAX, so that processes which only read data can do without it.
"""

import importlib

__version__ = "0.1.0"

__all__ = [
    "UnlearningInputs",
    "encoder_unlearning_loss",
    "feature_distance",
    "noise_images",
    "unlearning_inputs",
]


def __getattr__(name: str):
    if name in __all__:
        return getattr(importlib.import_module("l2l_jax.objectives"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
