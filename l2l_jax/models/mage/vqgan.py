"""VQGAN tokenizer (Esser et al. 2021, "Taming Transformers", as trained for MaskGIT and MAGE).

The convolutional variant that MAGE uses: no attention, no convolution next to the codebook, average
pooling on the way down. Equal to MAGE's PyTorch port on the arrays in `tests/reference`.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from l2l_jax.models.layers.convolution import Conv
from l2l_jax.models.layers.group_norm import GroupNorm
from l2l_jax.models.layers.remat import rematerialised

COMMITMENT_WEIGHT, CODEBOOK_WEIGHT = 1.0, 0.25
"""Weights of the two codebook losses. The usual paper has them the other way round; the released
tokenizer was trained with these."""


class ResBlock(nn.Module):
    """Two convolutions with a skip; if the channels change, the skip passes the *residual* on.

    The sum is in the type of the input.
    """

    width: int
    groups: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, height, width, channel]` → `[batch, height, width, self.width]`."""
        conv = partial(Conv, self.width, use_bias=False, dtype=self.dtype)
        norm = partial(GroupNorm, self.groups, epsilon=1e-6, dtype=self.dtype)
        h = conv((3, 3), name="conv1")(nn.swish(norm(name="norm1")(x)))
        h = conv((3, 3), name="conv2")(nn.swish(norm(name="norm2")(h)))
        if x.shape[-1] != self.width:
            # Not the input's: that is how the released tokenizer was trained.
            x = conv((1, 1), name="nin_shortcut")(h)
        return x + h


class Encoder(nn.Module):
    """Images → latents, each level but the last halving the side."""

    latent_width: int
    base_channels: int
    channel_multipliers: tuple[int, ...]
    num_res_blocks: int
    groups: int
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """`[batch, height, width, channel]` → `[batch, height / f, width / f, latent_width]`, with
        f = 2^(levels − 1)."""
        block = partial(rematerialised(ResBlock, self.remat), groups=self.groups, dtype=self.dtype)
        conv = partial(Conv, dtype=self.dtype)
        x = conv(self.base_channels, (3, 3), use_bias=False, name="conv_in")(images)
        levels = len(self.channel_multipliers)
        for i, multiplier in enumerate(self.channel_multipliers):
            for j in range(self.num_res_blocks):
                x = block(self.base_channels * multiplier, name=f"down_{i}_block_{j}")(x)
            if i < levels - 1:
                x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        for j in (1, 2):
            x = block(x.shape[-1], name=f"mid_block_{j}")(x)
        norm = GroupNorm(self.groups, epsilon=1e-6, name="norm_out")
        return Conv(self.latent_width, (1, 1), name="conv_out")(nn.swish(norm(x)))


class Decoder(nn.Module):
    """Latents → images, the levels from the deepest to the first; no bound on the pixel values."""

    channels: int
    base_channels: int
    channel_multipliers: tuple[int, ...]
    num_res_blocks: int
    groups: int
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, latent: jax.Array) -> jax.Array:
        """`[batch, height / f, width / f, latent_width]` → `[batch, height, width, channels]`."""
        block = partial(rematerialised(ResBlock, self.remat), groups=self.groups, dtype=self.dtype)
        conv = partial(Conv, kernel_size=(3, 3), dtype=self.dtype)
        x = conv(self.base_channels * self.channel_multipliers[-1], name="conv_in")(latent)
        for j in (1, 2):
            x = block(x.shape[-1], name=f"mid_block_{j}")(x)
        for i, multiplier in reversed(list(enumerate(self.channel_multipliers))):
            for j in range(self.num_res_blocks):
                x = block(self.base_channels * multiplier, name=f"up_{i}_block_{j}")(x)
            if i > 0:
                x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
                x = conv(x.shape[-1], name=f"up_{i}_upsample")(x)
        norm = GroupNorm(self.groups, epsilon=1e-6, name="norm_out")
        return Conv(self.channels, (3, 3), name="conv_out")(nn.swish(norm(x)))


def _codebook_init(rng: jax.Array, shape: tuple[int, int]) -> jax.Array:
    return jax.random.uniform(rng, shape, minval=-1 / shape[0], maxval=1 / shape[0])


class VectorQuantizer(nn.Module):
    """A codebook `[size, width]` and the search for the nearest code, in float32."""

    size: int
    width: int

    def setup(self):
        self.embedding = self.param("embedding", _codebook_init, (self.size, self.width))

    def nearest(self, latent: jax.Array) -> jax.Array:
        """Latents `[…, width]` → int32 `[…]`: the code of least squared distance."""
        # |z|² is the same for all codes and left out. The product decides between codes that are
        # close together: accelerators must not round its factors to bfloat16.
        product = jnp.einsum(
            "...d,nd->...n", latent.astype(jnp.float32), self.embedding,
            precision=jax.lax.Precision.HIGHEST,
        )  # fmt: skip
        norms = jnp.sum(jnp.square(self.embedding), axis=1)
        norms = norms.reshape((1,) * (latent.ndim - 1) + (self.size,))
        return jnp.argmin(norms - 2 * product, axis=-1).astype(jnp.int32)

    def look_up(self, ids: jax.Array) -> jax.Array:
        """Codes `[…]` → their vectors `[…, width]`."""
        return jnp.take(self.embedding, ids, axis=0)

    def __call__(self, latent: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Quantised latents with the straight-through gradient, and the loss of every example.

        Args:
          latent: `[batch, height, width, self.width]`.

        Returns:
          `[batch, height, width, self.width]`, whose gradient goes to `latent` as if nothing had
          been done, and `[batch]`: the mean over places and channels of the commitment loss (pulls
          latents to codes) and of the codebook loss (pulls codes to latents), in the weights above.
        """
        latent = latent.astype(jnp.float32)
        codes = self.look_up(self.nearest(latent))
        commitment = jnp.square(jax.lax.stop_gradient(codes) - latent).mean(axis=(1, 2, 3))
        codebook = jnp.square(codes - jax.lax.stop_gradient(latent)).mean(axis=(1, 2, 3))
        loss = COMMITMENT_WEIGHT * commitment + CODEBOOK_WEIGHT * codebook
        return latent + jax.lax.stop_gradient(codes - latent), loss


class VQGAN(nn.Module):
    """Encoder, codebook and decoder.

    Attributes:
      codebook_size: number of codes.
      codebook_width: channels of a code and of the latents.
      base_channels: channels at full resolution.
      channel_multipliers: of `base_channels`, one per level; a token stands for a square of
        2^(levels − 1) pixels a side.
      num_res_blocks: per level, on either side.
      groups: of the group normalisation; must divide the channels of every level.
      channels: of the images.
      dtype: of the products; latents, the codebook search and pixels are float32.
      remat: compute the inside of every block again in the backward pass, instead of keeping it.
    """

    codebook_size: int = 1024
    codebook_width: int = 256
    base_channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    groups: int = 32
    channels: int = 3
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    def setup(self):
        levels = (
            self.base_channels, self.channel_multipliers, self.num_res_blocks, self.groups,
            self.dtype, self.remat,
        )  # fmt: skip
        self.encoder = Encoder(self.codebook_width, *levels)
        self.quantize = VectorQuantizer(self.codebook_size, self.codebook_width)
        self.decoder = Decoder(self.channels, *levels)

    def __call__(
        self, images: jax.Array, painted: jax.Array | None = None, hidden: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """What training needs: reconstructions in the shape of `images`, and the codebook loss of
        every example, `[batch]`; both float32.

        Given `painted`, images with a part painted over, the latents come from there except where
        `hidden`, bool `[batch, rows, columns]`, says that they lie in that part.
        """
        latent = self.encoder(images)
        if painted is not None:
            latent = jnp.where(hidden[..., None], latent, self.encoder(painted))
        quantised, loss = self.quantize(latent)
        return self.decoder(quantised).astype(jnp.float32), loss

    def latent(self, images: jax.Array) -> jax.Array:
        """Images → latents before quantisation `[batch, rows, columns, codebook_width]`."""
        return self.encoder(images)

    def tokenize(self, images: jax.Array) -> jax.Array:
        """Images → codes, int32 `[batch, rows, columns]`."""
        return self.quantize.nearest(self.encoder(images))

    def decode_ids(self, ids: jax.Array) -> jax.Array:
        """Codes `[batch, rows, columns]` → images `[batch, height, width, channels]`, float32."""
        return self.decoder(self.quantize.look_up(ids)).astype(jnp.float32)
