"""Convolutions whose weight gradient is a matrix product on CPUs.

For the gradient with respect to a kernel, XLA's CPU compiler emits a convolution whose window is the entire
image, which runs at a fraction of the speed of a matrix product. Other platforms are unaffected: the choice
is made when a program is lowered for a platform, including ahead-of-time compilation for absent devices.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental.layout import Layout, with_layout_constraint

# Minimum pixels of an image to multiply it strip by strip, which keeps the operands of a strip in the caches
STRIPS_FROM = 4096
# Pixels of a strip (some lines of some images) and its minimum lines: a strip also reads its adjacent lines
STRIP_PLACES, STRIP_LINES = 2048, 4
NARROW = 8  # maximum channels for which copies of entire images are small as well
# Memory limit for copies of entire images; larger batches are processed in parts
COPIES_BYTES = 256 * 2**20
# Minimum pixels of an image to use the product; for 8 × 8 pixels, XLA's convolution is twice as fast
FROM_PLACES = 256
ROW_MAJOR = Layout((0, 1, 2, 3))
_NHWC = ("NHWC", "HWIO", "NHWC")


def convolution(x: Array, kernel: Array, window_strides: Any, padding: Any, **options: Any) -> Array:
    """Run `lax.conv_general_dilated`, with `kernel_gradient` as the weight gradient on CPUs.

    This applies to two-dimensional convolutions with odd kernel sides that keep the resolution.
    """
    dilations = (*(options.get("lhs_dilation") or ()), *(options.get("rhs_dilation") or ()))
    steps = (*window_strides, *dilations, options.get("feature_group_count", 1))
    nhwc = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
    layout = lax.conv_dimension_numbers(x.shape, kernel.shape, options.get("dimension_numbers"))
    odd = all(side % 2 for side in kernel.shape[:2])
    if x.ndim == 4 and layout == nhwc and padding == "SAME" and odd and set(steps) == {1}:
        return _same(x, kernel, options.get("precision"))
    return lax.conv_general_dilated(x, kernel, window_strides, padding, **options)


# `flax.linen.Conv` that computes with `convolution`; the parameters are the same
Conv = partial(nn.Conv, conv_general_dilated=convolution)


def _plain(x: Array, kernel: Array, precision: Any) -> Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=_NHWC, precision=precision)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _same(x: Array, kernel: Array, precision: Any) -> Array:
    return _plain(x, kernel, precision)


def _forward(x: Array, kernel: Array, precision: Any) -> tuple[Array, Any]:
    return _plain(x, kernel, precision), (x, kernel)


def _backward(precision: Any, kept: Any, gradient: Array) -> tuple[Array, Array]:
    x, kernel = kept
    (to_input,) = jax.linear_transpose(lambda v: _plain(v, kernel, precision), x)(gradient)

    def by_convolution(x: Array, gradient: Array) -> Array:
        return jax.linear_transpose(lambda k: _plain(x, k, precision), kernel)(gradient)[0]

    def by_cudnn(x: Array, gradient: Array) -> Array:
        # cuDNN stores output channels first. Transpose this small array here; otherwise XLA transposes the
        # optimizer state.
        return lax.optimization_barrier(with_layout_constraint(by_convolution(x, gradient), ROW_MAJOR))

    def by_product(x: Array, gradient: Array) -> Array:
        result = kernel_gradient(x, gradient, kernel.shape[:2], precision).astype(kernel.dtype)
        # In a shard_map with a replicated kernel, the gradient is the sum over devices. This sum is the
        # transpose of multiplying the kernel by a per-device 1.
        one = lax.full_like(x, 1, kernel.dtype, shape=())
        return jax.linear_transpose(lambda k: k * one, kernel)(result)[0]

    ways = {"cuda": by_cudnn, "default": by_convolution}
    if x.shape[1] * x.shape[2] >= FROM_PLACES:
        ways["cpu"] = by_product
    return to_input, lax.platform_dependent(x, gradient, **ways)


_same.defvjp(_forward, _backward)


def kernel_gradient(x: Array, gradient: Array, size: tuple[int, int], precision: Any = None) -> Array:
    """Compute the gradient of a convolution with respect to its kernel, float32, by matrix products.

    Shifted copies of the input, one per kernel column, are concatenated along the channels of one matrix. For
    each kernel row, its shifted lines are multiplied by the output's gradient, which sums over all positions
    of all images. If the output has fewer channels than the input, the output's gradient is copied instead.
    """
    if x.shape[-1] <= gradient.shape[-1]:
        return _correlation(x, gradient, size, precision)
    # Offsets from outputs to inputs have the opposite sign.
    return _correlation(gradient, x, size, precision)[::-1, ::-1].swapaxes(2, 3)


def _correlation(shifted: Array, still: Array, size: tuple[int, int], precision: Any) -> Array:
    """Sum offset `shifted` times `still` over all positions: `[*size, channel, other channel]`."""
    batch, height, width, channels = shifted.shape
    (rows, columns), others = size, still.shape[-1]
    in_strips = height * width >= STRIPS_FROM and channels > NARROW
    if in_strips:
        images = _divisor(batch, STRIP_PLACES // (width * min(STRIP_LINES, height)))
        lines = _divisor(height, max(STRIP_PLACES // (width * images), STRIP_LINES))
    else:
        images, lines = _divisor(batch, COPIES_BYTES * batch // (shifted.nbytes * columns)), height
    # Strips keep one sum per image; if the batch is split over devices, these are reduced once, at the end.
    sums = images if in_strips else 1
    multiply = partial(jnp.einsum, "nop,npi->noi", precision=precision, preferred_element_type=jnp.float32)
    margin = ((0, 0), (rows // 2, rows // 2), (columns // 2, columns // 2), (0, 0))
    padded = lax.optimization_barrier(_in_parts(jnp.pad(shifted, margin), images))
    still = _in_parts(still, images)

    def add_strip(index: Array | int, total: Array) -> Array:
        part, top = index // (height // lines), index % (height // lines) * lines
        padded_lines, lines_of_still = (
            lax.dynamic_slice_in_dim(lax.dynamic_index_in_dim(y, part, keepdims=False), top, count, axis=1)
            for y, count in ((padded, lines + rows - 1), (still, lines))
        )
        copies = jnp.concatenate([padded_lines[:, :, j : j + width] for j in range(columns)], axis=-1)
        copies = lax.optimization_barrier(copies)  # otherwise each product would concatenate them again
        factor = lines_of_still.reshape(sums, -1, others).swapaxes(1, 2)
        by_row = (copies[:, i : i + lines].reshape(sums, -1, columns * channels) for i in range(rows))
        return total + jnp.stack([multiply(factor, y) for y in by_row], axis=1)

    shape = (sums, rows, others, columns * channels)
    start = lax.full_like(still, 0, jnp.float32, shape=shape)  # in a shard_map, each device has its own sums
    strips = batch // images * (height // lines)
    total = add_strip(0, start) if strips == 1 else lax.fori_loop(0, strips, add_strip, start)
    return total.sum(axis=0).reshape(rows, others, columns, channels).transpose(0, 2, 3, 1)


def _divisor(number: int, most: int) -> int:
    """Return the largest divisor of `number` that is at most `most`, or 1."""
    return max(n for n in range(1, number + 1) if number % n == 0 and n <= max(most, 1))


def _in_parts(y: Array, images: int) -> Array:
    """Split `[batch, …]` into `[part, images, …]`, image i in part i mod parts: sharded rows do not move."""
    return jnp.moveaxis(y.reshape(images, -1, *y.shape[1:]), 1, 0)
