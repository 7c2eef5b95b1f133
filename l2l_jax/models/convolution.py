"""Convolutions whose weight gradient is a matrix product on CPUs.

For the gradient with respect to a kernel, XLA's CPU compiler runs a convolution whose window is the whole
image, at a fraction of the speed of a matrix product. Elsewhere nothing changes: the compiler chooses by
platform, also where a program is compiled for devices that are not there.
"""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

COPIES_BYTES = 256 * 2**20
"""Memory that the shifted copies of a batch may take; of a larger batch, some images go at a time."""

FROM_PLACES = 256
"""Pixels of an image from which the product is used; on smaller ones XLA's convolution is faster (twice as
fast on 8 × 8)."""

_NHWC = ("NHWC", "HWIO", "NHWC")


def convolution(
    x: jax.Array,
    kernel: jax.Array,
    window_strides: Any,
    padding: Any,
    lhs_dilation: Any = None,
    rhs_dilation: Any = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
) -> jax.Array:
    """`lax.conv_general_dilated`, with the weight gradient of `kernel_gradient` on CPUs.

    That holds for two-dimensional convolutions of kernels with odd sides that keep the resolution, of images
    of `FROM_PLACES` pixels or more; others are left as they are.

    Args:
      x: `[batch, height, width, channel]`.
      kernel: `[height, width, channel, output channel]`.
      window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count, precision:
        as Flax passes them, see `lax.conv_general_dilated`.
    """
    steps = (*window_strides, *(lhs_dilation or ()), *(rhs_dilation or ()), feature_group_count)
    whole = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
    layout = lax.conv_dimension_numbers(x.shape, kernel.shape, dimension_numbers)
    odd = all(side % 2 for side in kernel.shape[:2])
    if x.ndim == 4 and layout == whole and padding == "SAME" and odd and set(steps) == {1}:
        return _same(x, kernel, precision)
    return lax.conv_general_dilated(
        x, kernel, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers,
        feature_group_count, precision=precision,
    )  # fmt: skip


Conv = partial(nn.Conv, conv_general_dilated=convolution)
"""`flax.linen.Conv`, same parameters, with `convolution`."""


def _plain(x: jax.Array, kernel: jax.Array, precision: Any) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=_NHWC, precision=precision)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _same(x: jax.Array, kernel: jax.Array, precision: Any) -> jax.Array:
    return _plain(x, kernel, precision)


def _forward(x: jax.Array, kernel: jax.Array, precision: Any) -> tuple[jax.Array, Any]:
    return _plain(x, kernel, precision), (x, kernel)


def _backward(precision: Any, kept: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    (to_input,) = jax.linear_transpose(lambda v: _plain(v, kernel, precision), x)(gradient)

    def by_convolution(x: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.linear_transpose(lambda k: _plain(x, k, precision), kernel)(gradient)[0]

    def by_product(x: jax.Array, gradient: jax.Array) -> jax.Array:
        found = kernel_gradient(x, gradient, kernel.shape[:2], precision).astype(kernel.dtype)
        # In a shard_map, where all devices have one kernel, its gradient is their sum: that is the transpose
        # of a product with a one of each device.
        one = lax.full_like(x, 1, kernel.dtype, shape=())
        return jax.linear_transpose(lambda k: k * one, kernel)(found)[0]

    if x.shape[1] * x.shape[2] < FROM_PLACES:
        return to_input, by_convolution(x, gradient)
    return to_input, lax.platform_dependent(x, gradient, cpu=by_product, default=by_convolution)


_same.defvjp(_forward, _backward)


def kernel_gradient(
    x: jax.Array, gradient: jax.Array, size: tuple[int, int], precision: Any = None
) -> jax.Array:
    """The gradient of a convolution with respect to its kernel, as one matrix product.

    The input's shifted copies, one for each place of the kernel, stand side by side as the channels of one
    matrix; its product with the output's gradient sums over all places of all images. Where the output has
    fewer channels than the input, it is the output's gradient that is copied.

    Args:
      x: input of the convolution, `[batch, height, width, channel]`.
      gradient: of its output, `[batch, height, width, output channel]`.
      size: height and width of the kernel, odd.
      precision: of the product, see `jax.lax.Precision`.

    Returns:
      `[*size, channel, output channel]`, float32.
    """
    batch = x.shape[0]
    narrower = min(x.shape[-1], gradient.shape[-1])
    bytes_an_image = math.prod(x.shape[1:3]) * math.prod(size) * narrower * x.dtype.itemsize
    most = max(1, COPIES_BYTES // bytes_an_image)
    parts = next(parts for parts in range(1, batch + 1) if batch % parts == 0 and batch // parts <= most)
    product = partial(_product, size=size, precision=precision)
    if parts == 1:
        return product((x, gradient))

    def split(y: jax.Array) -> jax.Array:  # image i to part i mod parts: sharded rows stay where they are
        return jnp.moveaxis(y.reshape(batch // parts, parts, *y.shape[1:]), 1, 0)

    return lax.map(product, (split(x), split(gradient))).sum(axis=0)


def _product(both: tuple[jax.Array, jax.Array], *, size: tuple[int, int], precision: Any) -> jax.Array:
    x, gradient = both
    multiply = partial(jnp.einsum, "pi,po->io", precision=precision, preferred_element_type=jnp.float32)
    channels, outputs = x.shape[-1], gradient.shape[-1]
    if channels <= outputs:
        copies = shifted_copies(x, size)
        return multiply(copies, gradient.reshape(-1, outputs)).reshape(*size, channels, outputs)
    # An input's place is met by the outputs on the other side of it: the copies come in reverse order.
    copies = shifted_copies(gradient, size)
    product = multiply(x.reshape(-1, channels), copies).reshape(channels, *size, outputs)
    return product[:, ::-1, ::-1].transpose(1, 2, 0, 3)


def shifted_copies(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """What stands under a window of `size`, zeros outside: `[batch, height, width, channel]` →
    `[batch · height · width, places of the window · channel]`."""
    batch, height, width, channels = x.shape
    rows, columns = size
    margin = ((0, 0), (rows // 2, rows // 2), (columns // 2, columns // 2), (0, 0))
    padded = jnp.pad(x, margin)
    copies = [padded[:, i : i + height, j : j + width] for i in range(rows) for j in range(columns)]
    return jnp.concatenate(copies, axis=-1).reshape(-1, rows * columns * channels)
