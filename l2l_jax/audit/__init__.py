"""Attacks on unlearned models, and the verdict. Calling the package calls `l2l_jax.api.audit`."""

import sys
import types
from typing import Any


class _CallablePackage(types.ModuleType):
    """`l2l_jax.audit` is a package and, for notebooks, a function."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Attack an unlearned model; see `l2l_jax.api.audit`."""
        from l2l_jax.api import audit  # the programs that import attacks need not import all of the library

        return audit(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
