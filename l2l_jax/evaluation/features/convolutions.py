"""Convolutions with batch normalisation, as judges use them: trained long ago, their statistics fixed.

A normalisation with fixed statistics is linear, and so is the convolution before it: networks here hold
one kernel and one bias for both. Checkpoint files hold them apart; `joined` turns the one into the other.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util

from l2l_jax.weights.mapping import Rule, conv

Size = tuple[int, int]

HALVES = ("conv/kernel", "bn/scale", "bn/bias", "bn/mean", "bn/var")
"""What a file holds of a convolution, below its path."""


class Conv(nn.Module):
    """Convolution and batch normalisation in one, then ReLU; `[batch, height, width, channel]`.

    Attributes:
      channels: of the output.
      kernel: height and width.
      stride: of both axes.
      padding: pixels on either side of height and width.
      relu: whether negative values become 0.
    """

    channels: int
    kernel: Size = (1, 1)
    stride: int = 1
    padding: Size = (0, 0)
    relu: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        pads = [(pad, pad) for pad in self.padding]
        x = nn.Conv(self.channels, self.kernel, self.stride, pads, name="joined")(x)
        return nn.relu(x) if self.relu else x


def apart(params: Mapping[str, Any]) -> dict[str, Any]:
    """Shapes of what files hold, for a tree of shapes of a network of `Conv`s."""
    flat = {}
    for path, like in traverse_util.flatten_dict(params, sep="/").items():
        *unit, part, name = path.split("/")
        if part != "joined":
            flat[path] = like
        elif name == "kernel":
            for half in HALVES:
                shape = like.shape if half == "conv/kernel" else like.shape[-1:]
                flat["/".join([*unit, half])] = jax.ShapeDtypeStruct(shape, np.float32)
    return traverse_util.unflatten_dict(flat, sep="/")


def joined(params: Mapping[str, Any], epsilon: float) -> dict[str, Any]:
    """Parameters of a network of `Conv`s, from what a file holds.

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
            flat[f"{unit}joined/kernel"] = (np.asarray(value) * factor[None, None, None]).astype(np.float32)
            flat[f"{unit}joined/bias"] = (bias - mean * factor).astype(np.float32)
        elif path.split("/")[-2] != "bn":
            flat[path] = value
    return traverse_util.unflatten_dict(flat, sep="/")


def rules(torch_conv: str, torch_norm: str, flax_path: str) -> list[Rule]:
    """The rules of one convolution and its normalisation."""
    names = dict(weight="scale", bias="bias", running_mean="mean", running_var="var")
    norms = [Rule(f"{torch_norm}.{key}", f"{flax_path}/bn/{name}") for key, name in names.items()]
    return [Rule(f"{torch_conv}.weight", f"{flax_path}/conv/kernel", conv), *norms]
