"""Attention by the fastest kernels of the device."""

import functools

import jax
import jax.numpy as jnp
from jax import Array


def attention(query: Array, key: Array, value: Array) -> Array:
    """Attend over `[batch, token, head, channel]`, on NVIDIA GPUs by cuDNN's flash kernels if they can."""
    if not _cudnn_can(query.shape, key.shape, jnp.dtype(query.dtype)):
        return jax.nn.dot_product_attention(query, key, value)
    by_cudnn = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    return jax.lax.platform_dependent(query, key, value, cuda=by_cudnn, default=jax.nn.dot_product_attention)


@functools.cache
def _cudnn_can(query: tuple[int, ...], key: tuple[int, ...], dtype: jnp.dtype) -> bool:
    """Return whether cuDNN is installed and takes arrays of these shapes and this type."""
    arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape in (query, key, key)]
    if dtype not in (jnp.bfloat16, jnp.float16):
        return False
    try:
        jax.eval_shape(functools.partial(jax.nn.dot_product_attention, implementation="cudnn"), *arrays)
    except (RuntimeError, NotImplementedError, ValueError):
        return False
    return True
