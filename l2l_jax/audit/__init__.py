"""Attacks on unlearned models and the verdict. Calling the package calls `l2l_jax.api.audit`."""

import sys
import types
from typing import Any


class _CallablePackage(types.ModuleType):
    """A package that can also be called as a function, for notebooks."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Attack an unlearned model; see `l2l_jax.api.audit`."""
        from l2l_jax.api import audit  # imported late: programs that import attacks do not need the whole API

        return audit(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
