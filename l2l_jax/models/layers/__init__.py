"""Layers and helper functions shared by the model families."""

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def apply(module: nn.Module, params: Any, *args: Any, **kwargs: Any) -> Any:
    """Apply a module with `params` as its only variable collection."""
    return module.apply({"params": params}, *args, **kwargs)


def in_dtype(params: Any, dtype: jnp.dtype, float32: Collection[str] = ()) -> Any:
    """Cast parameters to the dtypes that they are computed in.

    Kernels of dense layers and convolutions, and their biases, are cast to `dtype` as the layers would do.
    Casting before parameters cross the network or are read twice halves the traffic. Residual streams,
    normalization and outputs that the loss reads directly stay float32: the paper's loss is a difference of
    nearly equal features, where rounding errors soon exceed the remaining difference.

    Args:
      params: A tree of dicts, float32.
      dtype: Dtype of matrix products and convolutions.
      float32: Paths of modules to leave unchanged, such as "decoder/head".
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


def gelu(x: jax.Array) -> jax.Array:
    """Return the exact (erf) GELU.

    For bfloat16, only `x` is saved for the backward pass, and NVIDIA GPUs compute in float32 from `x` to the
    result, as PyTorch does. This takes one kernel per direction; `jax.nn.gelu`, whose erfc is a hundred
    operations, takes two and writes intermediate results.
    """
    plain = functools.partial(nn.gelu, approximate=False)
    if x.dtype != jnp.bfloat16:
        return plain(x)

    def choose(x: jax.Array) -> jax.Array:
        return jax.lax.platform_dependent(x, cuda=gelu_by_erf, default=plain)

    return jax.checkpoint(choose)(x)


def gelu_by_erf(x: jax.Array) -> jax.Array:
    """Return x (1 + erf(x / √2)) / 2, computed in float32."""
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def remat_block(block: type[nn.Module], remat: bool) -> type[nn.Module]:
    """Return `block`; if `remat`, wrap it to save only its input for the backward pass."""
    return nn.remat(block) if remat else block


def loop(block: nn.Module, params: Sequence[Any], remat: bool, x: Any, *given: Any) -> Any:
    """Apply a block to `x` with several sets of parameters in sequence, as a loop over one compiled block.

    The results of products with parameters are saved for the backward pass; everything else, including
    attention, is recomputed. With `remat`, only the block's input is saved.
    """
    policies = jax.checkpoint_policies
    policy = policies.nothing_saveable if remat else policies.dots_with_no_batch_dims_saveable

    def body(x, params):
        return apply(block, params, x, *given), None

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    # Preventing CSE is unnecessary in a scan: forward and backward pass are separate loops.
    return jax.lax.scan(jax.checkpoint(body, policy=policy, prevent_cse=False), x, stacked)[0]


def sinusoids(values: jax.Array, width: int) -> jax.Array:
    """Compute cosines, then sines, of values · 10000^(−2i/width): `[…]` → `[…, width]`, float32."""
    half = width // 2
    frequency = jnp.exp(-math.log(10000) * jnp.arange(half, dtype=jnp.float32) / half)
    angle = jnp.expand_dims(values.astype(jnp.float32), -1) * frequency.reshape((1,) * values.ndim + (half,))
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def doubled(x: jax.Array) -> jax.Array:
    """Repeat every pixel of `[batch, height, width, channel]` twice in both directions."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
