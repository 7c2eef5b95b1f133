"""Residual blocks and convolutions shared by the U-Net and the autoencoder."""

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from l2l_jax.errors import UserError
from l2l_jax.models.layers.convolution import Conv
from l2l_jax.models.layers.group_norm import GroupNorm
from l2l_jax.models.palette.unet import lecun_uniform


def check_config(name: str, config: Mapping[str, Any], supported: Mapping[str, Collection[Any]]) -> None:
    """Raise a UserError if a JSON file has a value, or a list with a value, that is not supported.

    Missing keys are allowed.
    """
    for key, values in supported.items():
        setting = config.get(key)
        for value in setting if isinstance(setting, list) else [setting]:
            if key in config and value not in values:
                choices = ", ".join(str(value) for value in values)
                raise UserError(f"{name}: {key} {value} is not supported; supported: {choices}.")


def per_level(value: Any, levels: int) -> tuple[Any, ...]:
    """Return one value per level: a single value is repeated, a list must have that length."""
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,) * levels
    if len(values) != levels:
        raise UserError(f"expected {levels} values, one for each of block_out_channels, got {list(values)}.")
    return values


def conv(channels: int, size: int, dtype: jnp.dtype, name: str | None = None, **options: Any) -> nn.Conv:
    """Return a convolution with a `size` × `size` kernel that by default keeps the resolution."""
    options = {"kernel_init": lecun_uniform} | options
    return Conv(channels, (size, size), dtype=dtype, name=name, **options)


class ResBlock(nn.Module):
    """Residual block with two convolutions; a newly initialized block is the identity."""

    channels: int
    groups: int
    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, embedding: Array | None = None) -> Array:
        """Map `[batch, height, width, channel]` and an optional time embedding `[batch, width]`."""
        norm = partial(GroupNorm, self.groups, epsilon=self.epsilon, dtype=self.dtype, activation=nn.silu)
        h = conv(self.channels, 3, self.dtype, "conv1")(norm(name="norm1")(x))
        if embedding is not None:
            dense = nn.Dense(self.channels, dtype=self.dtype, kernel_init=lecun_uniform, name="time_emb_proj")
            h = h + dense(nn.silu(embedding))[:, None, None]
        h = norm(name="norm2")(h)
        h = conv(self.channels, 3, self.dtype, "conv2", kernel_init=nn.initializers.zeros)(h)
        if x.shape[-1] != self.channels:
            x = conv(self.channels, 1, self.dtype, "conv_shortcut")(x)
        return x + h
