"""Arrays of checkpoint files, read when they are wanted."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

FLOATS = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(jnp.bfloat16),
}
"""Number formats of weights, by name: float32 holds every value of the others."""

FLOATS_WANTED = f"expected are {', '.join(FLOATS)}"
"""End of a sentence about an array of another format."""


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array of a file, read when NumPy asks for it.

    Attributes:
      shape: its shape.
      dtype: its NumPy dtype.
      read: returns it.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.read(), dtype, copy=copy)


StateDict = dict[str, StoredArray]
