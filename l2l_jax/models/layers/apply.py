"""Calls of Linen modules."""

from typing import Any

import flax.linen as nn


def apply(module: nn.Module, params: Any, *args: Any, **kwargs: Any) -> Any:
    """Apply a module to its parameters and arguments, with no other variables."""
    return module.apply({"params": params}, *args, **kwargs)
