"""The autoencoder of Stable Diffusion (Rombach et al. 2022), from images to Gaussian latents and back.

Equivalent to diffusers' `AutoencoderKL`. Module names follow diffusers', with "_" between parts.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Self

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from l2l_jax.models.latent_diffusion.blocks import ResBlock, check_config, conv
from l2l_jax.models.layers import doubled
from l2l_jax.models.layers.attention import attention
from l2l_jax.models.layers.group_norm import GroupNorm
from l2l_jax.models.palette.unet import lecun_uniform

EPSILON = 1e-6

SUPPORTED = dict(
    down_block_types=("DownEncoderBlock2D",),
    up_block_types=("UpDecoderBlock2D",),
    act_fn=("silu",),
    latents_mean=(None,),
    latents_std=(None,),
)
"""Supported values in config.json."""


@dataclasses.dataclass(frozen=True)
class VAESizes:
    """Sizes of an autoencoder.

    Attributes:
      channels: Channels of images.
      latent_channels: Channels of latents.
      block_out_channels: Width of each level; each level halves the resolution.
      layers_per_block: Residual blocks of a level; the decoder has one more.
      norm_groups: Groups of the group normalization.
      scaling_factor, shift_factor: Normalization of the U-Net's input, (latents − shift) · scaling.
      mid_attention: Whether the middle block has attention.
      quant_conv, post_quant_conv: Whether 1 × 1 convolutions follow the encoder and precede the decoder.
    """

    channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_groups: int = 32
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0
    mid_attention: bool = True
    quant_conv: bool = True
    post_quant_conv: bool = True

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> Self:
        """Read vae/config.json of diffusers; unsupported values raise a UserError that names them."""
        check_config("vae/config.json", config, SUPPORTED)
        channels = config.get("in_channels", 3)
        check_config("vae/config.json", config, {"out_channels": (channels,)})
        return cls(
            channels=channels,
            latent_channels=config.get("latent_channels", 4),
            block_out_channels=tuple(config.get("block_out_channels", (64,))),
            layers_per_block=config.get("layers_per_block", 1),
            norm_groups=config.get("norm_num_groups", 32),
            scaling_factor=config.get("scaling_factor", 0.18215),
            shift_factor=config.get("shift_factor") or 0.0,
            mid_attention=config.get("mid_block_add_attention", True),
            quant_conv=config.get("use_quant_conv", True),
            post_quant_conv=config.get("use_post_quant_conv", True),
        )

    @property
    def stride(self) -> int:
        """Downsampling factor from images to latents."""
        return 2 ** (len(self.block_out_channels) - 1)


class SelfAttention(nn.Module):
    """Residual single-head self-attention over all positions."""

    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        dense = functools.partial(nn.Dense, channels, dtype=self.dtype, kernel_init=lecun_uniform)
        h = GroupNorm(self.groups, epsilon=EPSILON, dtype=self.dtype, name="group_norm")(x)
        h = h.reshape(batch, height * width, channels)
        q, k, v = (dense(name=name)(h)[:, :, None] for name in ("to_q", "to_k", "to_v"))
        return x + dense(name="to_out")(attention(q, k, v)[:, :, 0]).reshape(x.shape)


class Half(nn.Module):
    """Blocks shared by encoder and decoder."""

    sizes: VAESizes
    dtype: jnp.dtype

    @nn.nowrap
    def _res_block(self, channels: int, name: str) -> ResBlock:
        return ResBlock(channels, self.sizes.norm_groups, EPSILON, self.dtype, name=name)

    @nn.nowrap
    def _middle(self, h: Array) -> Array:
        h = self._res_block(h.shape[-1], "mid_block_resnets_0")(h)
        if self.sizes.mid_attention:
            h = SelfAttention(self.sizes.norm_groups, self.dtype, name="mid_block_attentions_0")(h)
        return self._res_block(h.shape[-1], "mid_block_resnets_1")(h)

    @nn.nowrap
    def _last(self, channels: int, h: Array) -> Array:
        """Apply the final normalization and convolution, in float32."""
        norm = GroupNorm(self.sizes.norm_groups, epsilon=EPSILON, activation=nn.silu, name="conv_norm_out")
        return conv(channels, 3, jnp.float32, "conv_out")(norm(h))


class VAEEncoder(Half):
    """Down blocks and middle block, from images to `[batch, height, width, 2 · latent_channels]`, float32."""

    @nn.compact
    def __call__(self, images: Array) -> Array:
        sizes, widths = self.sizes, self.sizes.block_out_channels
        h = conv(widths[0], 3, self.dtype, "conv_in")(images)
        for i, width in enumerate(widths):
            for j in range(sizes.layers_per_block):
                h = self._res_block(width, f"down_blocks_{i}_resnets_{j}")(h)
            if i + 1 < len(widths):  # padded only at the bottom and right
                edges = dict(strides=(2, 2), padding=((0, 1), (0, 1)))
                h = conv(width, 3, self.dtype, f"down_blocks_{i}_downsample", **edges)(h)
        return self._last(2 * sizes.latent_channels, self._middle(h))


class VAEDecoder(Half):
    """Middle block and up blocks, from latents to images, float32."""

    @nn.compact
    def __call__(self, latents: Array) -> Array:
        sizes, widths = self.sizes, self.sizes.block_out_channels[::-1]
        h = self._middle(conv(widths[0], 3, self.dtype, "conv_in")(latents))
        for i, width in enumerate(widths):
            for j in range(sizes.layers_per_block + 1):
                h = self._res_block(width, f"up_blocks_{i}_resnets_{j}")(h)
            if i + 1 < len(widths):
                h = conv(width, 3, self.dtype, f"up_blocks_{i}_upsample")(doubled(h))
        return self._last(sizes.channels, h)


class AutoencoderKL(nn.Module):
    """The autoencoder, with products and feature maps in `dtype`; results are float32.

    Latents are not scaled by the factors of `VAESizes`.
    """

    sizes: VAESizes
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        sizes = self.sizes
        self.encoder, self.decoder = VAEEncoder(sizes, self.dtype), VAEDecoder(sizes, self.dtype)
        if sizes.quant_conv:
            self.quant_conv = conv(2 * sizes.latent_channels, 1, jnp.float32)
        if sizes.post_quant_conv:
            self.post_quant_conv = conv(sizes.latent_channels, 1, jnp.float32)

    def encode(self, images: Array) -> tuple[Array, Array]:
        """Return mean and log variance of the latents, `[batch, height, width, latent_channels]`.

        `images` are in [−1, 1]; their sides are multiples of `sizes.stride`.
        """
        moments = self.encoder(images)
        if self.sizes.quant_conv:
            moments = self.quant_conv(moments)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(log_variance, -30, 20)

    def decode(self, latents: Array) -> Array:
        """Return images in about [−1, 1]."""
        return self.decoder(self.post_quant_conv(latents) if self.sizes.post_quant_conv else latents)

    def __call__(self, images: Array) -> Array:
        return self.decode(self.encode(images)[0])
