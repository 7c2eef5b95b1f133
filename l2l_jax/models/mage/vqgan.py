"""VQGAN tokenizer (Esser et al. 2021, "Taming Transformers", as trained for MaskGIT and MAGE).

The convolutional variant that MAGE uses has no attention, no convolutions next to the codebook, and
downsamples by average pooling. Results match MAGE's PyTorch port on the arrays in `tests/reference`.
"""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from l2l_jax.models.layers import doubled, remat_block
from l2l_jax.models.layers.convolution import Conv
from l2l_jax.models.layers.group_norm import GroupNorm

# Weights of the released tokenizer; in the paper they are swapped
COMMITMENT_WEIGHT, CODEBOOK_WEIGHT = 1.0, 0.25


@dataclasses.dataclass(frozen=True)
class Levels:
    """Sizes shared by encoder and decoder.

    A level has `base_channels` times its multiplier channels, which must be divisible by `groups`, and
    `num_res_blocks` residual blocks. A token covers a square with a side of 2^(levels − 1) pixels. `dtype` is
    the dtype of matrix products.
    """

    base_channels: int
    channel_multipliers: tuple[int, ...]
    num_res_blocks: int
    groups: int = 32
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @property
    def widths(self) -> list[int]:
        return [self.base_channels * multiplier for multiplier in self.channel_multipliers]

    def block(self, width: int, name: str) -> nn.Module:
        return remat_block(ResBlock, self.remat)(width, self.groups, self.dtype, name=name)

    def last(self, x: Array, channels: int, size: int) -> Array:
        """Apply the final normalization and convolution, in float32."""
        x = GroupNorm(self.groups, epsilon=1e-6, activation=nn.silu, name="norm_out")(x)
        return Conv(channels, (size, size), name="conv_out")(x)


class ResBlock(nn.Module):
    """Two convolutions with a skip connection, which projects the *residual* if the channels change.

    The sum has the dtype of the input.
    """

    width: int
    groups: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map `[batch, height, width, channel]` to `[batch, height, width, self.width]`."""
        conv = partial(Conv, self.width, use_bias=False, dtype=self.dtype)
        norm = partial(GroupNorm, self.groups, epsilon=1e-6, dtype=self.dtype, activation=nn.silu)
        h = conv((3, 3), name="conv1")(norm(name="norm1")(x))
        h = conv((3, 3), name="conv2")(norm(name="norm2")(h))
        if x.shape[-1] != self.width:
            # Project h, not the input: the released tokenizer was trained this way.
            x = conv((1, 1), name="nin_shortcut")(h)
        return x + h


class Encoder(nn.Module):
    """Encoder from images to latents; each level except the last halves the side."""

    latent_width: int
    levels: Levels

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Map `[batch, height, width, channel]` to `[batch, height / f, width / f, latent_width]`."""
        levels = self.levels
        x = Conv(levels.base_channels, (3, 3), use_bias=False, dtype=levels.dtype, name="conv_in")(images)
        for i, width in enumerate(levels.widths):
            for j in range(levels.num_res_blocks):
                x = levels.block(width, f"down_{i}_block_{j}")(x)
            if i < len(levels.widths) - 1:
                x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        for j in (1, 2):
            x = levels.block(x.shape[-1], f"mid_block_{j}")(x)
        return levels.last(x, self.latent_width, 1)


class Decoder(nn.Module):
    """Decoder from latents to images, from the deepest level to the first; pixel values are unbounded."""

    channels: int
    levels: Levels

    @nn.compact
    def __call__(self, latent: Array) -> Array:
        """Map `[batch, height / f, width / f, latent_width]` to `[batch, height, width, channels]`."""
        levels = self.levels
        conv = partial(Conv, kernel_size=(3, 3), dtype=levels.dtype)
        x = conv(levels.widths[-1], name="conv_in")(latent)
        for j in (1, 2):
            x = levels.block(x.shape[-1], f"mid_block_{j}")(x)
        for i, width in reversed(list(enumerate(levels.widths))):
            for j in range(levels.num_res_blocks):
                x = levels.block(width, f"up_{i}_block_{j}")(x)
            if i > 0:
                x = conv(x.shape[-1], name=f"up_{i}_upsample")(doubled(x))
        return levels.last(x, self.channels, 3)


class VectorQuantizer(nn.Module):
    """A codebook `[size, width]` and the search for the nearest code, in float32."""

    size: int
    width: int

    def setup(self) -> None:
        def draw(rng):
            reach = 1 / self.size
            return jax.random.uniform(rng, (self.size, self.width), minval=-reach, maxval=reach)

        self.embedding = self.param("embedding", draw)

    def nearest(self, latent: Array) -> Array:
        """Return the index of the nearest code for latents `[…, width]`, int32 `[…]`."""
        # |z|² is the same for all codes and omitted. The product must distinguish close codes, so
        # accelerators must not round its factors to bfloat16.
        exact = jax.lax.Precision.HIGHEST
        product = jnp.einsum("...d,nd->...n", latent.astype(jnp.float32), self.embedding, precision=exact)
        norms = jnp.sum(jnp.square(self.embedding), axis=1)
        norms = norms.reshape((1,) * (latent.ndim - 1) + (self.size,))
        return jnp.argmin(norms - 2 * product, axis=-1).astype(jnp.int32)

    def look_up(self, ids: Array) -> Array:
        """Return the codebook vectors `[…, width]` of codes `[…]`."""
        return jnp.take(self.embedding, ids, axis=0)

    def __call__(self, latent: Array) -> tuple[Array, Array]:
        """Return quantized latents with a straight-through gradient, and the per-example loss `[batch]`.

        The loss is the mean over positions and channels of the commitment loss (pulls latents to codes) and
        the codebook loss (pulls codes to latents), with the weights above.
        """
        latent = latent.astype(jnp.float32)
        codes = self.look_up(self.nearest(latent))
        commitment = jnp.square(jax.lax.stop_gradient(codes) - latent).mean(axis=(1, 2, 3))
        codebook = jnp.square(codes - jax.lax.stop_gradient(latent)).mean(axis=(1, 2, 3))
        loss = COMMITMENT_WEIGHT * commitment + CODEBOOK_WEIGHT * codebook
        return latent + jax.lax.stop_gradient(codes - latent), loss


class VQGAN(nn.Module):
    """Encoder, codebook and decoder; latents, the codebook search and pixels are float32."""

    codebook_size: int
    codebook_width: int
    channels: int
    levels: Levels

    def setup(self) -> None:
        self.encoder = Encoder(self.codebook_width, self.levels)
        self.quantize = VectorQuantizer(self.codebook_size, self.codebook_width)
        self.decoder = Decoder(self.channels, self.levels)

    def __call__(
        self, images: Array, painted: Array | None = None, hidden: Array | None = None
    ) -> tuple[Array, Array]:
        """Return reconstructions in the shape of `images`, and per-example codebook loss `[batch]`; float32.

        If `painted` (images with a filled region) is given, latents are computed from it except where
        `hidden`, bool `[batch, rows, columns]`, is True.
        """
        latent = self.encoder(images)
        if painted is not None:
            assert hidden is not None
            latent = jnp.where(hidden[..., None], latent, self.encoder(painted))
        quantized, loss = self.quantize(latent)
        return self.decoder(quantized).astype(jnp.float32), loss

    def tokenize(self, images: Array) -> Array:
        return self.quantize.nearest(self.encoder(images))

    def decode_ids(self, ids: Array) -> Array:
        """Decode codes `[batch, rows, columns]` to images `[batch, height, width, channels]`, float32."""
        return self.decoder(self.quantize.look_up(ids)).astype(jnp.float32)
