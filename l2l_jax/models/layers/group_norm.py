"""Group normalization that, for large images, first sums the statistics per channel."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

PLACES = 256
"""Minimum positions of an image to sum per channel first; smaller images are normalized as in Flax, with
which the metrics of the digits configs were measured. GPUs also sum this many positions in one pass."""


class GroupNorm(nn.GroupNorm):
    """`flax.linen.GroupNorm` for `[batch, …, channel]`, with the same parameters and results.

    Flax sums over positions and the channels of a group at once, which XLA's CPU compiler vectorizes over
    two or four numbers only. Summing over positions alone takes half the time or less.
    """

    activation: Callable[[Array], Array] | None = None  # elementwise; recomputed in the backward pass

    @nn.compact
    def __call__(self, x: Array, *, mask: Array | None = None, film: Sequence[Array] | None = None) -> Array:
        """Normalize `x`, with statistics in float32; the shape is unchanged.

        Args:
          x: Array `[batch, …, channel]`.
          mask: Mask as in Flax.
          film: Scale and shift before the activation, `[batch, channel]`: y → y · (1 + scale) + shift.
        """
        batch, *sides, channels = x.shape
        groups, activation = self.num_groups, self.activation or (lambda y: y)
        if mask is not None or groups is None or math.prod(sides) < PLACES or channels % groups:
            y = super().__call__(x, mask=mask)
            if film is not None:
                scale, shift = (each.reshape(batch, *(1 for _ in sides), channels) for each in film)
                y = y * (1 + scale) + shift
            return activation(y)
        factor, offset = (
            jnp.broadcast_to(self.param(name, init, (channels,), self.param_dtype), (batch, channels))
            for name, init in (("scale", self.scale_init), ("bias", self.bias_init))
        )
        dtype = self.dtype or jnp.result_type(x, factor, offset)
        if film is not None:
            scale, shift = (each.astype(jnp.float32) for each in film)
            factor, offset = factor * (1 + scale), offset * (1 + scale) + shift
        task = _Task(groups, self.epsilon, activation, dtype)
        return _normalized(x.reshape(batch, -1, channels), factor, offset, task).reshape(x.shape)


class _Task(NamedTuple):
    groups: int
    epsilon: float
    activation: Callable[[Array], Array]
    dtype: Any


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalized(x: Array, factor: Array, offset: Array, task: _Task) -> Array:
    """Normalize `[batch, place, channel]`, apply scale and offset `[batch, channel]`, then the activation."""
    return _forward(x, factor, offset, task)[0]


def _forward(x: Array, factor: Array, offset: Array, task: _Task) -> tuple[Array, Any]:
    wide = x.astype(jnp.float32)
    mean, square = (_group_mean(y.sum(axis=1), x, task) for y in (wide, jnp.square(wide)))
    inverse = lax.rsqrt(jnp.maximum(square - jnp.square(mean), 0) + task.epsilon)
    y = (wide - mean[:, None]) * (inverse * factor)[:, None] + offset[:, None]
    return task.activation(y).astype(task.dtype), (x, factor, offset, mean, inverse)


def _group_mean(sums: Array, x: Array, task: _Task) -> Array:
    """Return for each channel the mean over its group and the positions of `x`, given sums over positions."""
    grouped = sums.reshape(len(x), task.groups, -1)
    size = grouped.shape[-1]
    return jnp.repeat(grouped.sum(axis=-1) / (x.shape[1] * size), size, axis=-1)


def _backward(task: _Task, kept: Any, gradient: Array) -> tuple[Array, Array, Array]:
    x, factor, offset, mean, inverse = kept

    def slopes(x: Array, gradient: Array) -> tuple[Array, Array]:
        """Return x - mean, and the gradient before the activation."""
        centered = x.astype(jnp.float32) - mean[:, None]
        y = centered * (inverse * factor)[:, None] + offset[:, None]
        return centered, jax.vjp(task.activation, y)[1](gradient.astype(jnp.float32))[0]

    def at_once(x: Array, gradient: Array) -> tuple[Array, Array, Array, Array]:
        # Otherwise XLA's CPU compiler recomputes the slope in every sum.
        centered, slope = lax.optimization_barrier(slopes(x, gradient))
        return slope.sum(axis=1), (slope * centered).sum(axis=1), centered, slope

    def sums_first(x: Array, gradient: Array) -> tuple[Array, Array, Array, Array]:
        # Otherwise XLA's GPU compiler computes the slope once, writes it in float32 and reads it three times.
        x, gradient = lax.optimization_barrier((x, gradient))
        centered, slope = slopes(x, gradient)
        part = PLACES if x.shape[1] % PLACES == 0 else x.shape[1]
        parts = tuple(y.reshape(len(x), -1, part, y.shape[-1]) for y in (slope, slope * centered))
        sums = lax.reduce(parts, (0.0, 0.0), lambda one, other: (one[0] + other[0], one[1] + other[1]), (2,))
        *sums, x, gradient = lax.optimization_barrier((*(y.sum(axis=1) for y in sums), x, gradient))
        return *sums, *slopes(x, gradient)

    to_offset, with_x, centered, slope = lax.platform_dependent(x, gradient, cuda=sums_first, default=at_once)
    by_mean, by_square = (
        _group_mean(factor * sums, x, task) for sums in (to_offset, with_x * jnp.square(inverse))
    )
    to_x = slope * factor[:, None] - by_mean[:, None] - centered * by_square[:, None]
    return (inverse[:, None] * to_x).astype(x.dtype), inverse * with_x, to_offset


_normalized.defvjp(_forward, _backward)
