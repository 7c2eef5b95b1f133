"""Layers and helpers that model families share."""

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def apply(module: nn.Module, params: Any, *args: Any, **kwargs: Any) -> Any:
    """Apply a module to its parameters and arguments, with no other variables."""
    return module.apply({"params": params}, *args, **kwargs)


def in_dtype(params: Any, dtype: jnp.dtype, float32: Collection[str] = ()) -> Any:
    """Return parameters in the dtypes that they are computed with.

    Kernels of products and convolutions, and their biases, are rounded to `dtype`, as the layers would round
    them: done before they cross the network or are read twice, it saves half the bytes. Residual streams,
    normalization and whatever the loss reads directly stay float32: the paper's loss is a difference of
    features that are nearly equal, where rounding is soon as large as what is left to learn.

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


def gelu(x: jax.Array) -> jax.Array:
    """Return the exact (erf) GELU.

    Of bfloat16 only `x` is kept for the backward pass, and NVIDIA GPUs compute in float32 from `x` to the
    result, as PyTorch does. That is one kernel in each direction; `jax.nn.gelu`, whose erfc is a hundred
    operations, becomes two and writes intermediate results.
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
    """Return `block`; with `remat`, one that keeps only its input for the backward pass."""
    return nn.remat(block) if remat else block


def loop(block: nn.Module, params: Sequence[Any], remat: bool, x: Any, *given: Any) -> Any:
    """Apply a block to `x` with each of several sets of parameters in turn, as a loop of one compiled block.

    The results of products with parameters are kept for the backward pass, and everything else, attention
    included, is computed again. With `remat` the block's input alone is kept.
    """
    policies = jax.checkpoint_policies
    policy = policies.nothing_saveable if remat else policies.dots_with_no_batch_dims_saveable

    def body(x, params):
        return apply(block, params, x, *given), None

    side_by_side = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    # Common subexpressions need no barrier: a loop keeps the two passes apart anyway.
    return jax.lax.scan(jax.checkpoint(body, policy=policy, prevent_cse=False), x, side_by_side)[0]


def sinusoids(values: jax.Array, width: int) -> jax.Array:
    """Return cosines, then sines, of values · 10000^(−2i/width): `[…]` → `[…, width]`, float32."""
    half = width // 2
    frequency = jnp.exp(-math.log(10000) * jnp.arange(half, dtype=jnp.float32) / half)
    angle = jnp.expand_dims(values.astype(jnp.float32), -1) * frequency.reshape((1,) * values.ndim + (half,))
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def doubled(x: jax.Array) -> jax.Array:
    """Repeat every pixel of `[batch, height, width, channel]` twice in both directions."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
