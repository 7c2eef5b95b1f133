"""The phases of an experiment: what comes before, around and after the training loop."""

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    if name in ("run", "audit"):  # `l2l_jax.experiment.run` starts JAX when it is first used
        return getattr(importlib.import_module("l2l_jax.experiment.pipeline"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
