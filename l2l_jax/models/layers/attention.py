"""Attention with the fastest kernel available on the device."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

FROM_CAPABILITY = 8.0  # lowest compute capability (Ampere) of GPUs with flash kernels
LOGITS = 2**22  # logits per head that are computed at a time: a quarter of those of 64 × 64 positions


def attention(query: Array, key: Array, value: Array) -> Array:
    """Compute attention over `[batch, token, head, channel]`, with cuDNN's flash kernels where supported."""
    if not _cudnn_can(query.shape, key.shape, jnp.dtype(query.dtype)):
        return _in_parts(query, key, value)
    return jax.lax.platform_dependent(query, key, value, cuda=_by_cudnn, default=_in_parts)


def _in_parts(query: Array, key: Array, value: Array) -> Array:
    """Compute attention, in chunks of queries if there are many, whose logits are not saved."""
    batch, tokens, heads, width = query.shape
    parts = max(1, tokens * key.shape[1] // LOGITS)
    if parts == 1 or tokens % parts:
        return jax.nn.dot_product_attention(query, key, value)

    @jax.checkpoint
    def attend(part: Array) -> Array:
        return jax.nn.dot_product_attention(part, key, value)

    split = query.reshape(batch, parts, -1, heads, width).swapaxes(0, 1)
    return jax.lax.map(attend, split).swapaxes(0, 1).reshape(query.shape)


def attend_even(query: Array, key: Array, value: Array, implementation: Literal["xla", "cudnn"]) -> Array:
    """Compute attention, with odd token counts padded: cuDNN's backward pass supports even counts only."""
    queries = keys = None
    if query.shape[1] % 2 or key.shape[1] % 2:
        queries, keys = (jnp.full(len(x), x.shape[1], jnp.int32) for x in (query, key))
    q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (query, key, value))
    out = jax.nn.dot_product_attention(
        q, k, v, query_seq_lengths=queries, key_value_seq_lengths=keys, implementation=implementation
    )
    return out[:, : query.shape[1]]


_by_cudnn = functools.partial(attend_even, implementation="cudnn")


@functools.cache
def _cudnn_can(query: tuple[int, ...], key: tuple[int, ...], dtype: jnp.dtype) -> bool:
    """Return whether cuDNN is installed and supports these shapes in the forward and backward pass."""
    if dtype not in (jnp.bfloat16, jnp.float16):
        return False

    def trial(*arrays):
        result, pullback = jax.vjp(_by_cudnn, *arrays)
        return pullback(result)

    try:
        jax.eval_shape(trial, *(jax.ShapeDtypeStruct(shape, dtype) for shape in (query, key, key)))
    except (RuntimeError, NotImplementedError, ValueError):
        return False
    gpus = [device for device in jax.devices() if device.platform == "gpu"]
    return all(float(gpu.compute_capability) >= FROM_CAPABILITY for gpu in gpus)
