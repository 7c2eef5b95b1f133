"""Convolutions with batch normalization of fixed statistics, for feature networks.

Such a normalization is linear, and so is the preceding convolution. Networks here hold a single kernel and
bias for both, which `joined` computes from the arrays of a checkpoint.

The functions are called in the `nn.compact` method of a module, which owns the parameters. Images are
`[batch, height, width, channel]`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

Size = tuple[int, int]
# Arrays of a convolution in a checkpoint, relative to its path
HALVES = ("conv/kernel", "bn/scale", "bn/bias", "bn/mean", "bn/var")


class Weights(nn.Module):
    """Kernel `[height, width, input, channel]` and bias `[channel]` of a convolution."""

    shape: tuple[int, int, int, int]

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        """Return kernel and bias."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), self.shape)
        return kernel, self.param("bias", nn.initializers.zeros, self.shape[-1:])


def conv(
    x: jax.Array, name: str, channels: int, kernel: Size = (1, 1), *, stride: int = 1, padding: Size = (0, 0)
) -> jax.Array:
    """Apply a convolution and normalization, without ReLU; `name` is the name of the parameters."""
    if kernel == (1, 1):
        return pointwise(x[:, ::stride, ::stride], {name: channels})[0]
    values, bias = Weights((*kernel, x.shape[-1], channels), name=name)()
    pads = [(pad, pad) for pad in padding]
    layout = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, values, (stride, stride), pads, dimension_numbers=layout)
    return x + bias[None, None, None]


def pointwise(x: jax.Array, channels: Mapping[str, int]) -> list[jax.Array]:
    """Apply several 1×1 convolutions and normalizations to the same images, without ReLU.

    On CPUs, a joint matrix product takes two thirds of the time of separate ones. `channels` are the numbers
    of channels of the outputs, by parameter name.
    """
    weights = [Weights((1, 1, x.shape[-1], width), name=name)() for name, width in channels.items()]
    kernel = jnp.concatenate([values[0, 0] for values, _ in weights], axis=1)
    bias = jnp.concatenate([values for _, values in weights])
    y = (x.reshape(-1, x.shape[-1]) @ kernel + bias[None]).reshape(*x.shape[:-1], -1)
    return jnp.split(y, np.cumsum(list(channels.values()))[:-1], axis=-1)


def pool(x: jax.Array, join: Callable[[jax.Array, jax.Array], jax.Array], *, stride: int = 1) -> jax.Array:
    """Reduce all 3×3 windows with `join`, without padding.

    The reduction is separable, rows first, because XLA's own pooling on CPUs is not vectorized.
    """
    for axis in (1, 2):
        last = (x.shape[axis] - 3) // stride * stride
        shifted = [jax.lax.slice_in_dim(x, start, start + last + 1, stride, axis) for start in range(3)]
        x = functools.reduce(join, shifted)
    return x


def max_pool(x: jax.Array, *, stride: int = 1, padding: int = 0) -> jax.Array:
    """Return the maximum over 3×3 windows."""
    around = [(0, 0), (padding, padding), (padding, padding), (0, 0)]
    return pool(jnp.pad(x, around, constant_values=-jnp.inf), jnp.maximum, stride=stride)


def mean_pool(x: jax.Array) -> jax.Array:
    """Return the mean over the 3×3 window around each pixel, excluding padding."""
    rows, columns = (np.convolve(np.ones(size), np.ones(3), "same") for size in x.shape[1:3])
    counts = np.outer(rows, columns).astype(np.float32)
    sums = pool(jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)]), jnp.add)
    return sums / counts[None, :, :, None]


def apart(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the shapes of the arrays in a checkpoint, given the shapes of a convolutional network."""
    flat = {}
    shapes = traverse_util.flatten_dict(params, sep="/")
    for path, like in shapes.items():
        unit = path.rpartition("/")[0]
        if shapes[f"{unit}/kernel"].ndim != 4:
            flat[path] = like
        elif path.endswith("/kernel"):
            for half in HALVES:
                shape = like.shape if half == "conv/kernel" else like.shape[-1:]
                flat[f"{unit}/{half}"] = jax.ShapeDtypeStruct(shape, np.float32)
    return traverse_util.unflatten_dict(flat, sep="/")


def joined(params: Mapping[str, Any], epsilon: float) -> dict[str, Any]:
    """Fold batch normalization into the convolutions of a network, in float64 and rounded once.

    `params` are the arrays of a checkpoint, at the paths of `apart`; `epsilon` is added to variances.
    """
    flat = {}
    arrays = traverse_util.flatten_dict(params, sep="/")
    for path, value in arrays.items():
        unit = path.removesuffix("conv/kernel")
        if unit != path:
            scale, bias, mean, var = (np.asarray(arrays[unit + half], np.float64) for half in HALVES[1:])
            factor = scale / np.sqrt(var + epsilon)
            flat[f"{unit}kernel"] = (np.asarray(value) * factor[None, None, None]).astype(np.float32)
            flat[f"{unit}bias"] = (bias - mean * factor).astype(np.float32)
        elif path.split("/")[-2] != "bn":
            flat[path] = value
    return traverse_util.unflatten_dict(flat, sep="/")
