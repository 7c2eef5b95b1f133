"""The autoencoder of Stable Diffusion (Rombach et al. 2022): images to Gaussian latents and back.

Computes what diffusers' `AutoencoderKL` does. Module names follow diffusers', with "_" between parts.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from l2l_jax.models.latent_diffusion.blocks import ResBlock, check_config, conv, doubled
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
"""Values of config.json that the module computes."""


@dataclasses.dataclass(frozen=True)
class VAESizes:
    """Sizes of an autoencoder.

    Attributes:
      channels: Channels of images.
      latent_channels: Channels of latents.
      block_out_channels: Width of each level; each has half the resolution of the one before.
      layers_per_block: Residual blocks of a level; the decoder has one more.
      norm_groups: Groups of the group normalization.
      scaling_factor, shift_factor: The U-Net is given (latents − shift) · scaling.
      mid_attention: Attention in the middle.
      quant_conv, post_quant_conv: 1 × 1 convolutions after the encoder and before the decoder.
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
        """Read vae/config.json of diffusers; what is not supported raises a UserError that names it."""
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
        """Pixels of an image along a side of a latent."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclasses.dataclass(frozen=True)
class VAEConfig(VAESizes):
    """Sizes of an autoencoder, and the dtype of products and feature maps; results are float32."""

    dtype: jnp.dtype = jnp.float32


class SelfAttention(nn.Module):
    """Residual self-attention over all places, with one head."""

    config: VAEConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map `[batch, height, width, channel]` to the same shape."""
        config, (batch, height, width, channels) = self.config, x.shape

        def dense(y: Array, name: str) -> Array:
            return nn.Dense(channels, dtype=config.dtype, kernel_init=lecun_uniform, name=name)(y)

        h = GroupNorm(config.norm_groups, epsilon=EPSILON, dtype=config.dtype, name="group_norm")(x)
        h = h.reshape(batch, height * width, channels)
        q, k, v = (dense(h, name)[:, :, None] for name in ("to_q", "to_k", "to_v"))
        return x + dense(attention(q, k, v)[:, :, 0], "to_out").reshape(x.shape)


def _res_block(config: VAEConfig, channels: int, name: str) -> ResBlock:
    return ResBlock(channels, config.norm_groups, EPSILON, config.dtype, name=name)


def _middle(config: VAEConfig, h: Array) -> Array:
    h = _res_block(config, h.shape[-1], "mid_block_resnets_0")(h)
    if config.mid_attention:
        h = SelfAttention(config, name="mid_block_attentions_0")(h)
    return _res_block(config, h.shape[-1], "mid_block_resnets_1")(h)


def _last(config: VAEConfig, channels: int, h: Array) -> Array:
    h = nn.silu(GroupNorm(config.norm_groups, epsilon=EPSILON, name="conv_norm_out")(h))
    return conv(channels, 3, jnp.float32, "conv_out")(h)


class VAEEncoder(nn.Module):
    """Down blocks and middle block."""

    config: VAEConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map images to `[batch, height, width, 2 · latent_channels]`, float32."""
        config, widths = self.config, self.config.block_out_channels
        h = conv(widths[0], 3, config.dtype, "conv_in")(x)
        for i, width in enumerate(widths):
            for j in range(config.layers_per_block):
                h = _res_block(config, width, f"down_blocks_{i}_resnets_{j}")(h)
            if i + 1 < len(widths):  # padded below and on the right only
                edges = dict(strides=(2, 2), padding=((0, 1), (0, 1)))
                h = conv(width, 3, config.dtype, f"down_blocks_{i}_downsample", **edges)(h)
        return _last(config, 2 * config.latent_channels, _middle(config, h))


class VAEDecoder(nn.Module):
    """Middle block and up blocks."""

    config: VAEConfig

    @nn.compact
    def __call__(self, latents: Array) -> Array:
        """Map latents to images, float32."""
        config, widths = self.config, self.config.block_out_channels[::-1]
        h = _middle(config, conv(widths[0], 3, config.dtype, "conv_in")(latents))
        for i, width in enumerate(widths):
            for j in range(config.layers_per_block + 1):
                h = _res_block(config, width, f"up_blocks_{i}_resnets_{j}")(h)
            if i + 1 < len(widths):
                h = conv(width, 3, config.dtype, f"up_blocks_{i}_upsample")(doubled(h))
        return _last(config, config.channels, h)


class AutoencoderKL(nn.Module):
    """The autoencoder; latents here are as it makes them, without the scaling of `VAEConfig`."""

    config: VAEConfig

    def setup(self) -> None:
        """Create both halves."""
        config = self.config
        self.encoder, self.decoder = VAEEncoder(config), VAEDecoder(config)
        if config.quant_conv:
            self.quant_conv = conv(2 * config.latent_channels, 1, jnp.float32)
        if config.post_quant_conv:
            self.post_quant_conv = conv(config.latent_channels, 1, jnp.float32)

    def encode(self, images: Array) -> tuple[Array, Array]:
        """Return mean and log variance of the latents, `[batch, height, width, latent_channels]`.

        Args:
          images: In [−1, 1]; sides are multiples of `config.stride`.
        """
        moments = self.encoder(images)
        if self.config.quant_conv:
            moments = self.quant_conv(moments)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(log_variance, -30, 20)

    def decode(self, latents: Array) -> Array:
        """Return images in about [−1, 1]."""
        return self.decoder(self.post_quant_conv(latents) if self.config.post_quant_conv else latents)

    def __call__(self, images: Array) -> Array:
        """Return the reconstruction from the mean."""
        return self.decode(self.encode(images)[0])

    def to_latents(self, images: Array, noise: Array | None = None) -> Array:
        """Return scaled latents: the mean, or a sample with standard normal `noise`."""
        mean, log_variance = self.encode(images)
        if noise is not None:
            mean = mean + jnp.exp(0.5 * log_variance) * noise
        return (mean - self.config.shift_factor) * self.config.scaling_factor

    def to_images(self, latents: Array) -> Array:
        """Return images of scaled latents."""
        return self.decode(latents / self.config.scaling_factor + self.config.shift_factor)
