"""Mixed precision: which numbers of a bfloat16 model stay float32.

The paper's loss is a difference of features that are nearly equal, so that rounding is soon as large as what
is left to learn. Products and convolutions are computed in `dtype`, from parameters rounded to it; residual
streams, normalization and whatever the loss reads directly (last norms, heads, the γ embedding) are float32.
docs/guides/scaling.md has what each choice costs.
"""

from collections.abc import Collection, Mapping
from typing import Any

import jax.numpy as jnp


def in_dtype(params: Any, dtype: jnp.dtype, float32: Collection[str] = ()) -> Any:
    """Return parameters in the dtypes that they are computed with.

    Kernels of products and convolutions, and their biases, are rounded to `dtype`, as the layers would round
    them: done before they cross the network or are read twice, it saves half the bytes.

    Args:
      params: A tree of dicts, float32.
      dtype: Of the products.
      float32: Modules that stay as they are, such as "decoder/head".
    """
    if dtype == jnp.float32:
        return params

    def visit(tree: Any, path: str) -> Any:
        if not isinstance(tree, Mapping) or path in float32:
            return tree
        if "kernel" in tree:
            return {name: value.astype(dtype) for name, value in tree.items()}
        return {name: visit(value, f"{path}/{name}" if path else name) for name, value in tree.items()}

    return visit(params, "")
