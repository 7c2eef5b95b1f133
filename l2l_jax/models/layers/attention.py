"""Attention by the fastest kernels of the device."""

import functools

import jax
import jax.numpy as jnp
from jax import Array

FROM_CAPABILITY = 8.0
"""Compute capability (Ampere) from which GPUs have the flash kernels."""


def attention(query: Array, key: Array, value: Array) -> Array:
    """Attend over `[batch, token, head, channel]`, on NVIDIA GPUs by cuDNN's flash kernels if they can."""
    if not _cudnn_can(query.shape, key.shape, jnp.dtype(query.dtype)):
        return jax.nn.dot_product_attention(query, key, value)
    return jax.lax.platform_dependent(query, key, value, cuda=_by_cudnn, default=jax.nn.dot_product_attention)


_by_cudnn = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")


@functools.cache
def _cudnn_can(query: tuple[int, ...], key: tuple[int, ...], dtype: jnp.dtype) -> bool:
    """Return whether cuDNN is installed and takes arrays of these shapes and this type, forward and backward.

    Odd numbers of tokens, for example, it takes forward only.
    """
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
