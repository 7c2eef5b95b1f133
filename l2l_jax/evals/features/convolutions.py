"""Convolutions with batch normalisation, as judges use them: trained long ago, their statistics fixed.

A normalisation with fixed statistics is linear, and so is the convolution before it: networks here hold one
kernel and one bias for both. Checkpoint files hold them apart; `joined` turns the one into the other.

All functions are called in the `nn.compact` method of a module, to which the parameters then belong. Images
are `[batch, height, width, channel]`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from l2l_jax.weights import mapping
from l2l_jax.weights.mapping import Rule

Size = tuple[int, int]

HALVES = ("conv/kernel", "bn/scale", "bn/bias", "bn/mean", "bn/var")
"""What a file holds of a convolution, below its path."""


class Weights(nn.Module):
    """Kernel `[height, width, input, channel]` and bias `[channel]` of a convolution."""

    shape: tuple[int, int, int, int]

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), self.shape)
        return kernel, self.param("bias", nn.initializers.zeros, self.shape[-1:])


def conv(
    x: jax.Array, name: str, channels: int, kernel: Size = (1, 1), *, stride: int = 1, padding: Size = (0, 0)
) -> jax.Array:
    """Convolution and normalisation; no ReLU.

    Args:
      x: the images.
      name: of the parameters.
      channels: of the output.
      kernel: height and width.
      stride: of both axes.
      padding: pixels on either side of height and width.
    """
    if kernel == (1, 1):
        return pointwise(x[:, ::stride, ::stride], {name: channels})[0]
    values, bias = Weights((*kernel, x.shape[-1], channels), name=name)()
    pads = [(pad, pad) for pad in padding]
    layout = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, values, (stride, stride), pads, dimension_numbers=layout)
    return x + bias[None, None, None]


def pointwise(x: jax.Array, channels: Mapping[str, int]) -> list[jax.Array]:
    """Several 1×1 convolutions and normalisations of the same images, no ReLU; outputs in their order.

    They are one product of matrices: XLA computes it on CPUs in two thirds of the time of the single ones.

    Args:
      x: the images.
      channels: of each output, by the name of its parameters.
    """
    weights = [Weights((1, 1, x.shape[-1], wanted), name=name)() for name, wanted in channels.items()]
    kernel = jnp.concatenate([values[0, 0] for values, _ in weights], axis=1)
    bias = jnp.concatenate([values for _, values in weights])
    y = (x.reshape(-1, x.shape[-1]) @ kernel + bias[None]).reshape(*x.shape[:-1], -1)
    return jnp.split(y, np.cumsum(list(channels.values()))[:-1], axis=-1)


def pool(x: jax.Array, join: Callable[[jax.Array, jax.Array], jax.Array], *, stride: int = 1) -> jax.Array:
    """What `join` makes of every 3×3 pixels, without padding.

    First of three rows, then of three columns: XLA's own pooling on CPUs takes one number at a time.
    """
    for axis in (1, 2):
        last = (x.shape[axis] - 3) // stride * stride
        first, second, third = (
            jax.lax.slice_in_dim(x, start, start + last + 1, stride, axis) for start in range(3)
        )
        x = join(join(first, second), third)
    return x


def max_pool(x: jax.Array, *, stride: int = 1, padding: int = 0) -> jax.Array:
    """Greatest of 3×3 pixels."""
    around = [(0, 0), (padding, padding), (padding, padding), (0, 0)]
    return pool(jnp.pad(x, around, constant_values=-jnp.inf), jnp.maximum, stride=stride)


def mean_pool(x: jax.Array) -> jax.Array:
    """Mean of 3×3 pixels around each pixel, of those that are there."""
    rows, columns = (np.convolve(np.ones(size), np.ones(3), "same") for size in x.shape[1:3])
    there = np.outer(rows, columns).astype(np.float32)
    sums = pool(jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)]), jnp.add)
    return sums / there[None, :, :, None]


def apart(params: Mapping[str, Any]) -> dict[str, Any]:
    """Shapes of what files hold, for a tree of shapes of a network of convolutions."""
    flat = {}
    found = traverse_util.flatten_dict(params, sep="/")
    for path, like in found.items():
        unit = path.rpartition("/")[0]
        if found[f"{unit}/kernel"].ndim != 4:
            flat[path] = like
        elif path.endswith("/kernel"):
            for half in HALVES:
                shape = like.shape if half == "conv/kernel" else like.shape[-1:]
                flat[f"{unit}/{half}"] = jax.ShapeDtypeStruct(shape, np.float32)
    return traverse_util.unflatten_dict(flat, sep="/")


def joined(params: Mapping[str, Any], epsilon: float) -> dict[str, Any]:
    """Parameters of a network of convolutions, from what a file holds.

    Computed in float64 and rounded once. Everything else stays as it is.

    Args:
      params: arrays at the paths of `apart`.
      epsilon: what the normalisation adds to its variances.
    """
    flat = {}
    found = traverse_util.flatten_dict(params, sep="/")
    for path, value in found.items():
        unit = path.removesuffix("conv/kernel")
        if unit != path:
            scale, bias, mean, var = (np.asarray(found[unit + half], np.float64) for half in HALVES[1:])
            factor = scale / np.sqrt(var + epsilon)
            flat[f"{unit}kernel"] = (np.asarray(value) * factor[None, None, None]).astype(np.float32)
            flat[f"{unit}bias"] = (bias - mean * factor).astype(np.float32)
        elif path.split("/")[-2] != "bn":
            flat[path] = value
    return traverse_util.unflatten_dict(flat, sep="/")


def rules(torch_conv: str, torch_norm: str, flax_path: str) -> list[Rule]:
    """The rules of one convolution and its normalisation."""
    names = dict(weight="scale", bias="bias", running_mean="mean", running_var="var")
    norms = [Rule(f"{torch_norm}.{key}", f"{flax_path}/bn/{name}") for key, name in names.items()]
    return [Rule(f"{torch_conv}.weight", f"{flax_path}/conv/kernel", mapping.conv), *norms]
