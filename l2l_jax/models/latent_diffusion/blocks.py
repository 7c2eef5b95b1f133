"""Residual blocks and resampling that the U-Net and the autoencoder share."""

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
    """Raise a UserError for a value of a JSON file, named or in a list, that is not among the supported ones.

    A key may be missing.
    """
    for key, values in supported.items():
        given = config.get(key)
        for value in given if isinstance(given, list) else [given]:
            if key in config and value not in values:
                known = ", ".join(str(value) for value in values)
                raise UserError(f"{name}: {key} {value} is not supported; supported: {known}.")


def per_level(value: Any, levels: int) -> tuple[Any, ...]:
    """Return a value of each level: the same for all, or those of a list of that length."""
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,) * levels
    if len(values) != levels:
        raise UserError(f"expected {levels} values, one for each of block_out_channels, got {list(values)}.")
    return values


def conv(channels: int, size: int, dtype: jnp.dtype, name: str | None = None, **options: Any) -> nn.Conv:
    """Return a convolution with a `size` × `size` kernel that by default keeps the resolution."""
    options = {"kernel_init": lecun_uniform} | options
    return Conv(channels, (size, size), dtype=dtype, name=name, **options)


class ResBlock(nn.Module):
    """Residual block with two convolutions; a new one passes its input on.

    It maps `[batch, height, width, channel]` and an embedding `[batch, width]` of time, if any.
    """

    channels: int
    groups: int
    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, embedding: Array | None = None) -> Array:
        """Map `[batch, height, width, channel]`, `[batch, 4 · inner_channel]` to `[…, channels]`."""
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
