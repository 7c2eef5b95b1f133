"""U-Net of guided diffusion (Dhariwal and Nichol 2021), conditioned on the noise level γ as in Palette.

A reimplementation of the U-Net in Janspiry's Palette; results match on the arrays in `tests/reference`.
Feature maps are `[batch, height, width, channel]`. Module names follow the original `input_blocks.{i}.{j}`,
`middle_block.{j}` and `output_blocks.{i}.{j}`.
"""

import dataclasses
import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from l2l_jax.models.layers import doubled, remat_block, sinusoids
from l2l_jax.models.layers.attention import attention
from l2l_jax.models.layers.convolution import Conv
from l2l_jax.models.layers.group_norm import GroupNorm


def lecun_uniform(rng: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """Sample uniform values with variance 1 / fan_in, for kernels `[…, in, out]`.

    Values are sampled as a flat array, because XLA takes three times as long to compile sampling in four
    dimensions on CPU.
    """
    bound = math.sqrt(3 / math.prod(shape[:-1]))
    return jax.random.uniform(rng, (math.prod(shape),), dtype, -bound, bound).reshape(shape)


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Sizes shared by encoder and decoder."""

    # The width of a level is inner_channel times its multiplier; each level halves the resolution.
    inner_channel: int
    channel_mults: tuple[int, ...]
    res_blocks: int  # residual blocks per level (one more in the decoder)
    # Downsampling factors, not resolutions, of levels with self-attention; the middle block always has it
    attn_res: tuple[int, ...]
    num_head_channels: int  # width of an attention head
    norm_groups: int  # number of groups of the group normalization; must divide every width
    dtype: jnp.dtype = jnp.float32  # dtype of products and feature maps; γ embedding and output are float32
    remat: bool = False  # recompute the activations of every block in the backward pass

    def __post_init__(self):
        widths = [mult * self.inner_channel for mult in self.channel_mults]
        if any(width % self.norm_groups for width in widths):
            raise ValueError(f"norm_groups {self.norm_groups} must divide the widths {widths}")
        attended = [w for i, w in enumerate(widths) if 2**i in self.attn_res] + widths[-1:]
        if any(width % self.num_head_channels for width in attended):
            raise ValueError(
                f"num_head_channels {self.num_head_channels} must divide the widths with "
                f"attention, {attended}"
            )
        if self.inner_channel % 2:
            raise ValueError(f"inner_channel must be even, not {self.inner_channel}")

    def norm(self, name: str, **options: Any) -> GroupNorm:
        """Return a group normalization; statistics are always float32."""
        return GroupNorm(self.norm_groups, epsilon=1e-5, dtype=self.dtype, name=name, **options)

    def conv(self, channels: int, size: int, name: str, zero: bool = False) -> nn.Conv:
        """Return a convolution with a `size` × `size` kernel that keeps the resolution."""
        init = nn.initializers.zeros if zero else lecun_uniform
        return Conv(channels, (size, size), dtype=self.dtype, kernel_init=init, name=name)

    def dense(self, features: int, name: str, zero: bool = False) -> nn.Dense:
        init = nn.initializers.zeros if zero else lecun_uniform
        return nn.Dense(features, dtype=self.dtype, kernel_init=init, name=name)


class ResBlock(nn.Module):
    """Residual block; the γ embedding scales and shifts its second normalization.

    A newly initialized block is the identity (or resampling), because the last kernel is zero.
    """

    config: UNetConfig
    channels: int
    resample: Literal["down", "up"] | None = None

    @nn.compact
    def __call__(self, x: Array, embedding: Array) -> Array:
        """Map `[batch, height, width, channel]`, `[batch, 4 · inner_channel]` to `[…, channels]`."""
        h = self.config.norm("in_norm", activation=nn.silu)(x)
        if self.resample == "down":
            h, x = (nn.avg_pool(y, (2, 2), (2, 2)) for y in (h, x))
        elif self.resample == "up":
            h, x = (doubled(y) for y in (h, x))
        h = self.config.conv(self.channels, 3, "in_conv")(h)
        film = self.config.dense(2 * self.channels, "emb")(nn.silu(embedding))
        h = self.config.norm("out_norm", activation=nn.silu)(h, film=jnp.split(film, 2, axis=-1))
        h = self.config.conv(self.channels, 3, "out_conv", zero=True)(h)
        if x.shape[-1] != self.channels:
            x = self.config.conv(self.channels, 1, "skip")(x)
        return x + h


class Attention(nn.Module):
    """Residual self-attention over all positions; qkv is ordered by head, each as [q, k, v]."""

    config: UNetConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        head = self.config.num_head_channels
        tokens = x.reshape(batch, height * width, channels)
        qkv = self.config.dense(3 * channels, "qkv")(self.config.norm("norm")(tokens))
        qkv = qkv.reshape(batch, height * width, channels // head, 3, head)
        out = attention(qkv[..., 0, :], qkv[..., 1, :], qkv[..., 2, :])
        out = out.reshape(batch, height * width, channels)
        return x + self.config.dense(channels, "proj_out", zero=True)(out).reshape(x.shape)


class GammaEmbedding(nn.Module):
    """Two dense layers over `sinusoids`: `[batch]` → `[batch, 4 · inner_channel]`, float32."""

    config: UNetConfig

    @nn.compact
    def __call__(self, gamma: Array) -> Array:
        width = 4 * self.config.inner_channel
        x = sinusoids(gamma, self.config.inner_channel)
        x = nn.silu(nn.Dense(width, kernel_init=lecun_uniform, name="dense_0")(x))
        return nn.Dense(width, kernel_init=lecun_uniform, name="dense_1")(x)


class Encoder(nn.Module):
    """γ embedding, input blocks and middle block."""

    config: UNetConfig

    @nn.compact
    def __call__(self, x: Array, gamma: Array) -> tuple[tuple[Array, ...], Array]:
        """Encode images `[batch, height, width, channel]` at noise levels `[batch]`.

        Returns:
          The outputs of all input blocks, then of the middle block; and the embedding of γ, which the decoder
          needs but the objective does not compare.
        """
        config = self.config
        res_block, attention = (remat_block(cls, config.remat) for cls in (ResBlock, Attention))
        embedding = GammaEmbedding(config, name="cond_embed")(gamma)
        h = config.conv(config.channel_mults[0] * config.inner_channel, 3, "input_blocks_0_0")(x)
        features = [h]
        for level, mult in enumerate(config.channel_mults):
            channels = mult * config.inner_channel
            for _ in range(config.res_blocks):
                name = f"input_blocks_{len(features)}"
                h = res_block(config, channels, name=f"{name}_0")(h, embedding)
                if 2**level in config.attn_res:
                    h = attention(config, name=f"{name}_1")(h)
                features.append(h)
            if level + 1 < len(config.channel_mults):
                name = f"input_blocks_{len(features)}_0"
                h = res_block(config, channels, "down", name=name)(h, embedding)
                features.append(h)
        h = res_block(config, channels, name="middle_block_0")(h, embedding)
        h = attention(config, name="middle_block_1")(h)
        h = res_block(config, channels, name="middle_block_2")(h, embedding)
        return (*features, h), embedding


class Decoder(nn.Module):
    """Output blocks, each with a skip connection from the encoder, and the final convolution."""

    config: UNetConfig
    out_channel: int

    @nn.compact
    def __call__(self, features: tuple[Array, ...], embedding: Array) -> Array:
        """Map the results of `Encoder` to `[batch, height, width, out_channel]`, float32."""
        config = self.config
        res_block, attention = (remat_block(cls, config.remat) for cls in (ResBlock, Attention))
        *skips, h = features
        blocks = len(skips)
        for level in reversed(range(len(config.channel_mults))):
            channels = config.channel_mults[level] * config.inner_channel
            for i in range(config.res_blocks + 1):
                name = f"output_blocks_{blocks - len(skips)}"
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = res_block(config, channels, name=f"{name}_0")(h, embedding)
                attends = 2**level in config.attn_res
                if attends:
                    h = attention(config, name=f"{name}_1")(h)
                if level and i == config.res_blocks:
                    place = 2 if attends else 1
                    h = res_block(config, channels, "up", name=f"{name}_{place}")(h, embedding)
        h = GroupNorm(config.norm_groups, epsilon=1e-5, activation=nn.silu, name="out_norm")(h)
        return Conv(self.out_channel, (3, 3), kernel_init=nn.initializers.zeros, name="out_conv")(h)
