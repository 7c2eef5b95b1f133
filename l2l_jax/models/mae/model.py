"""Masked autoencoder (He et al. 2022), a reimplementation of facebookresearch/mae."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from l2l_jax.models.base import DTYPES, Corrupted, Model, Numbers, Params, Positive, Positives, Size, register
from l2l_jax.models.layers import apply, in_dtype, vit
from l2l_jax.models.mae import convert
from l2l_jax.models.mae.hugging_face import HuggingFace
from l2l_jax.utils.batch_axis import draw_rows

small_normal = nn.initializers.normal(0.02)


class Encoder(nn.Module):
    """Patch embedding and ViT over the kept patches."""

    patch_size: int
    grid: int
    width: int
    blocks: vit.Stack

    @nn.compact
    def __call__(self, patches: Array, ids: Array) -> Array:
        """Encode patches `[batch, kept, patch² · channel]` at grid positions `ids` `[batch, kept]`.

        The result is `[batch, 1 + kept, width]`, float32, with the class token first.
        """
        positions = jnp.asarray(vit.sincos_position_table(self.width, self.grid))
        cls_token = self.param("cls_token", small_normal, (1, 1, self.width))
        x = vit.PatchEmbed(self.patch_size, self.width, self.blocks.dtype, name="patch_embed")(patches)
        x = x + positions[1:][ids]
        x = jnp.concatenate([jnp.broadcast_to(cls_token, (x.shape[0], 1, self.width)), x], axis=1)
        return nn.LayerNorm(epsilon=self.blocks.norm_eps, name="norm")(self.blocks(self, x))


class Decoder(nn.Module):
    """ViT over all positions; missing positions hold a learned mask token."""

    patch_dim: int
    grid: int
    width: int
    blocks: vit.Stack

    @nn.compact
    def __call__(self, latent: Array, ids_restore: Array) -> Array:
        """Map `[batch, 1 + kept, encoder width]`, `[batch, patches]` to `[batch, patches, patch_dim]`."""
        positions = jnp.asarray(vit.sincos_position_table(self.width, self.grid))
        mask_token = self.param("mask_token", small_normal, (1, 1, self.width))
        embed = nn.Dense(self.width, dtype=self.blocks.dtype, kernel_init=vit.xavier, name="decoder_embed")
        x = embed(latent).astype(jnp.float32)
        batch, total = ids_restore.shape
        missing = jnp.broadcast_to(mask_token, (batch, total + 1 - x.shape[1], self.width))
        tokens = jnp.concatenate([x[:, 1:], missing], axis=1)
        tokens = jnp.take_along_axis(tokens, ids_restore[..., None], axis=1)
        x = jnp.concatenate([x[:, :1], tokens], axis=1) + positions[None]
        x = nn.LayerNorm(epsilon=self.blocks.norm_eps, name="decoder_norm")(self.blocks(self, x))
        return nn.Dense(self.patch_dim, kernel_init=vit.xavier, name="decoder_pred")(x)[:, 1:]


def random_masking(noise: Array, kept: int) -> tuple[Array, Array]:
    """Choose the `kept` patches with the smallest noise `[batch, patches]`, in order of noise.

    Returns:
      `ids_keep` `[batch, kept]` and `ids_restore` `[batch, patches]`, the inverse permutation: patch p is
      missing where `ids_restore[:, p] >= kept`.
    """
    ids_shuffle = jnp.argsort(noise, axis=1)
    return ids_shuffle[:, :kept], jnp.argsort(ids_shuffle, axis=1)


def _per_channel(values: tuple[float, ...]) -> Array:
    return jnp.asarray(values).reshape(1, 1, 1, -1)


@register("mae")
@dataclasses.dataclass(frozen=True)
class MAE(Model):
    """Masked autoencoder over square images.

    Attributes:
      image_size: Side of the images in pixels, a multiple of `patch_size`.
      patch_size: Side of a patch in pixels.
      width, depth, num_heads: Sizes of the encoder; decoder_…: sizes of the decoder.
      layer_norm_eps: Epsilon of all layer normalizations.
      mask_ratio: Fraction of the patches that T hides in training and unlearning.
      norm_pix_loss: Compute the loss on patches normalized by their own mean and standard deviation. Such a
        model predicts normalized patches; `inpaint` rescales them by the mean and standard deviation of the
        visible pixels, which is an approximation. Models for inpainting are trained without it.
      pixel_mean, pixel_std: Normalization per channel; inputs and loss use (pixel − mean) / std. The
        published weights need the values of ImageNet.
      dtype: Dtype of matrix products, "float32" or "bfloat16"; see `l2l_jax.models.layers.in_dtype`.
      remat: Recompute the activations of every transformer block in the backward pass, which saves memory for
        a third more computation.
      scan: Loop over one compiled transformer block, which compiles many times faster.
    """

    image_size: Size = 224
    patch_size: Size = 16
    width: Size = 768
    depth: Size = 12
    num_heads: Size = 12
    decoder_width: Size = 512
    decoder_depth: Size = 8
    decoder_num_heads: Size = 16
    layer_norm_eps: Positive = 1e-6
    mask_ratio: float = 0.75
    norm_pix_loss: bool = False
    pixel_mean: Numbers = (0.0, 0.0, 0.0)
    pixel_std: Positives = (1.0, 1.0, 1.0)
    value_range: tuple[float, float] = (0.0, 1.0)
    channels: Size = 3
    dtype: str = "float32"
    remat: bool = False
    scan: bool = False

    VARIANTS = convert.VARIANTS  # not annotated, so not dataclass fields
    FORMATS = (convert.Original(), HuggingFace())
    TRAINED_WITH = (
        *("image_size", "num_heads", "decoder_num_heads", "layer_norm_eps", "norm_pix_loss"),
        *("pixel_mean", "pixel_std", "value_range"),
    )
    attention_layers = ("qkv", "proj")
    encodes_visible = True
    inpaints_from_patches = True

    def __post_init__(self):
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not divisible by patch_size {self.patch_size}")
        for width, heads in ((self.width, self.num_heads), (self.decoder_width, self.decoder_num_heads)):
            if width % heads or width % 4:
                raise ValueError(f"width {width} must be divisible by 4 and by its {heads} heads")
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must be between 0 and 1, not {self.mask_ratio}")
        self._check_fields({}, dtype=DTYPES)

    @property
    def grid(self) -> int:
        return self.image_size // self.patch_size

    @property
    def patch_dim(self) -> int:
        return self.patch_size**2 * self.channels

    @property
    def encoder(self) -> Encoder:
        return Encoder(self.patch_size, self.grid, self.width, vit.stack(self, "", self.layer_norm_eps))

    @property
    def decoder(self) -> Decoder:
        blocks = vit.stack(self, "decoder_", self.layer_norm_eps)
        return Decoder(self.patch_dim, self.grid, self.decoder_width, blocks)

    def in_compute_dtype(self, params: Params) -> Params:
        return in_dtype(params, jnp.dtype(self.dtype), float32=("decoder/decoder_pred",))

    def init(self, rng: Array) -> Params:
        encoder_rng, decoder_rng = jax.random.split(rng)
        ids = jnp.zeros((1, 1), jnp.int32)
        ids_restore = jnp.zeros((1, self.grid**2), jnp.int32)
        return {
            "encoder": self.encoder.init(encoder_rng, jnp.zeros((1, 1, self.patch_dim)), ids)["params"],
            "decoder": self.decoder.init(decoder_rng, jnp.zeros((1, 2, self.width)), ids_restore)["params"],
        }

    def corrupt(self, params: Params, images: Array, rng: Array, axis_name: str | None = None) -> Corrupted:
        """Keep a random `1 − mask_ratio` of the patches; see `mask`."""
        del params
        patches = self.grid**2
        noise = draw_rows(lambda rows: jax.random.uniform(rng, (rows, patches)), images.shape[0], axis_name)
        return self.mask(images, noise, int(patches * (1 - self.mask_ratio)))

    def mask(self, images: Array, noise: Array, kept: int) -> Corrupted:
        """Corrupt with given noise `[batch, patches]` and number of kept patches.

        Returns:
          `patches` `[batch, kept, patch² · channel]`, and `ids` and `ids_restore` of `random_masking`.
        """
        ids_keep, ids_restore = random_masking(noise, kept)
        patches = jnp.take_along_axis(self._patches(images), ids_keep[..., None], axis=1)
        return {"patches": patches, "ids": ids_keep, "ids_restore": ids_restore}

    def _patches(self, images: Array) -> Array:
        normalized = (images - _per_channel(self.pixel_mean)) / _per_channel(self.pixel_std)
        return vit.patchify(normalized, self.patch_size)

    def encode(self, encoder_params: Any, corrupted: Corrupted) -> Array:
        """Return tokens `[batch, 1 + kept, width]`, float32, class token first."""
        return apply(self.encoder, encoder_params, corrupted["patches"], corrupted["ids"])

    def predict(self, params: Params, corrupted: Corrupted) -> Array:
        """Return predicted patches `[batch, patches, patch² · channel]`, float32."""
        return self.encode_and_predict(params, corrupted)[1]

    def encode_and_predict(self, params: Params, corrupted: Corrupted) -> tuple[Array, Array]:
        latent = self.encode(params["encoder"], corrupted)
        return latent, apply(self.decoder, params["decoder"], latent, corrupted["ids_restore"])

    def prediction_loss(self, predicted: Array, images: Array, corrupted: Corrupted) -> Array:
        """Return the mean squared error over the missing patches of each image, `[batch]`."""
        target = self._patches(images)
        if self.norm_pix_loss:
            mean = target.mean(-1, keepdims=True)
            variance = target.var(-1, keepdims=True, ddof=1)
            target = (target - mean) / jnp.sqrt(variance + 1e-6)
        return self.imitation_loss(predicted, corrupted, target)

    def imitation_loss(self, predicted: Array, corrupted: Corrupted, target: Array) -> Array:
        """Return the mean squared error to `target` over the missing patches, `[batch]`."""
        error = jnp.square(predicted - target).mean(-1)
        missing = corrupted["ids_restore"] >= corrupted["ids"].shape[1]
        return jnp.sum(error * missing, axis=1) / jnp.sum(missing, axis=1)

    def with_truth(
        self, params: Params, images: Array, corrupted: Corrupted, truth: Array
    ) -> tuple[Array, Corrupted]:
        return truth, corrupted

    def inpaint(self, params: Params, images: Array, mask: np.ndarray, rng: Array) -> Array:
        """Replace the missing pixels in one forward pass; patches with any missing pixel are hidden."""
        del rng
        mask = self._check_mask(mask)
        cells = mask.reshape(self.grid, self.patch_size, self.grid, self.patch_size)
        visible = np.flatnonzero(~cells.any(axis=(1, 3)))
        if not len(visible):
            raise ValueError("the mask touches every patch: nothing is left to inpaint from")
        painted = self._paint(params, images, jnp.broadcast_to(visible, (images.shape[0], len(visible))))
        return jnp.where(mask[None, ..., None], painted, images)

    def inpaint_from_patches(self, params: Params, images: Array, visible: Array) -> Array:
        """Replace the hidden patches in one forward pass, clipped to the pixel range."""
        hidden = jnp.ones((images.shape[0], self.grid**2), bool)
        hidden = jnp.put_along_axis(hidden, visible, False, axis=1, inplace=False)
        patches = jnp.broadcast_to(hidden[..., None], (*hidden.shape, self.patch_dim))
        mask = vit.unpatchify(patches, self.patch_size, *self.image_shape[:2])
        return jnp.where(mask, self._paint(params, images, visible), images)

    def _paint(self, params: Params, images: Array, visible: Array) -> Array:
        """Return complete predicted images from the patches `visible` `[batch, visible]`, clipped."""
        noise = jnp.ones((images.shape[0], self.grid**2))
        noise = jnp.put_along_axis(noise, visible, 0.0, axis=1, inplace=False)
        patches = self.predict(params, self.mask(images, noise, visible.shape[1]))
        painted = vit.unpatchify(patches, self.patch_size, *self.image_shape[:2])
        if self.norm_pix_loss:
            pixels = jnp.take_along_axis(self._patches(images), visible[..., None], axis=1)
            pixels = pixels.reshape(images.shape[0], -1, self.channels)
            painted = painted * pixels.std(1)[:, None, None] + pixels.mean(1)[:, None, None]
        painted = painted * _per_channel(self.pixel_std) + _per_channel(self.pixel_mean)
        return jnp.clip(painted, *self.value_range)
