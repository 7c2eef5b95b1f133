"""Machine unlearning for image-to-image generative models, in JAX and Flax.

The losses, for your own training code, need only JAX and NumPy:

    from l2l_jax import encoder_unlearning_loss, unlearning_inputs, unlearning_loss

A complete run, for notebooks:

    model, params = l2l_jax.load("fashion_mae")
    result = l2l_jax.unlearn(model, params, retain, forget)

Names are imported on first use, so `import l2l_jax` does not load JAX.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what `__getattr__` imports
    from l2l_jax import audit
    from l2l_jax.api import Result, evaluate, inpaint, load, unlearn
    from l2l_jax.errors import UserError
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
    from l2l_jax.models.base import Model

__version__ = "0.2.0"

__all__ = [
    "Model",
    "Result",
    "UnlearningInputs",
    "UserError",
    "audit",
    "encoder_unlearning_loss",
    "evaluate",
    "feature_distance",
    "inpaint",
    "load",
    "max_loss",
    "noise_features",
    "noise_images",
    "noisy_label_loss",
    "random_encoder_loss",
    "retain_label_loss",
    "unlearn",
    "unlearning_inputs",
    "unlearning_loss",
]

_MODULES = {
    "Model": "l2l_jax.models.base",
    "Result": "l2l_jax.api",
    "UserError": "l2l_jax.errors",
    "evaluate": "l2l_jax.api",
    "inpaint": "l2l_jax.api",
    "load": "l2l_jax.api",
    "unlearn": "l2l_jax.api",
}
"""Modules of the public names that are not defined in `l2l_jax.losses`."""


def __getattr__(name: str) -> object:
    if name == "audit":  # a callable package
        return importlib.import_module("l2l_jax.audit")
    if name in __all__:
        return getattr(importlib.import_module(_MODULES.get(name, "l2l_jax.losses")), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
