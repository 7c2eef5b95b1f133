"""MAGE (Li et al. 2023, arXiv 2211.09117): a masked autoencoder over the tokens of a VQGAN.

Codes have a large receptive field: group normalization covers the entire image and the convolutions overlap.
The codes next to a mask therefore depend on the color that fills it. The released code trains on codes of
complete images and inpaints from codes of filled ones. On small images, filling changes most codes;
`MAGE.paint_masked` trains on filled images instead.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from l2l_jax import masks
from l2l_jax.models import base
from l2l_jax.models.base import DTYPES, Corrupted, Count, Model, Number, Params, Size, Sizes, register
from l2l_jax.models.layers import apply, in_dtype, vit
from l2l_jax.models.mage import convert, decoding, networks
from l2l_jax.models.mage.vqgan import VQGAN, Levels
from l2l_jax.utils.batch_axis import draw_rows


@register("mage")
@dataclasses.dataclass(frozen=True)
class MAGE(Model):
    """MAGE over square images.

    Parts of the parameters: "tokenizer" (the entire VQGAN), "encoder" (token embedding and ViT, which the
    paper's method trains), "decoder" (ViT decoder and token head), and "unused": tensors of the released
    state dict that do not affect any result, kept for strict loading of exported weights.

    The vocabulary consists of the codebook, 1,000 unused classes, and the mask token. The class token has the
    id `codebook_size + 76` of one of these classes, as in the released code.

    Attributes:
      image_size: Side of the images in pixels, a multiple of `patch_size`.
      width, depth, num_heads: Sizes of the encoder; decoder_…: sizes of the decoder.
      embedding_std: Initial standard deviation of word and position embeddings; larger values speed up
        training from scratch.
      codebook_size, codebook_width, base_channels, channel_multipliers, num_res_blocks, groups: Sizes of the
        tokenizer, see `vqgan.Levels`.
      dropped: Fraction of the tokens that the encoder does not receive, rounded up to whole tokens.
      mask_mean, mask_std: Mean and standard deviation of the fraction of masked tokens (including dropped
        ones): a normal distribution truncated to [`dropped`, 1], sampled once per batch.
      dropout: Dropout rate of the token embeddings, applied by `corrupt`. Student and teacher share the
        sample; in the released code the teacher has no dropout.
      label_smoothing: Label smoothing of the cross-entropy.
      hole_color: Fill color of the mask per channel, applied before the image is tokenized.
      paint_masked: In training, fill the pixels of masked tokens with `hole_color` before the visible tokens
        are computed, as inpainting does with the mask. The released code does not do this.
      hidden_margin: Number of tokens by which the mask is dilated for decoding.
      blend_margin, blend_sigma: Dilation and blur of the mask for blending, in pixels. The 14 and 7 of the
        released code are for 256-pixel images; 0 and 0 replace exactly the masked pixels.
      decoding_steps: Number of steps of the iterative decoding.
      choice_temperature: Temperature of the noise on token confidence; 0 fixes the most confident first.
      sampling_temperature: Temperature of the softmax for sampling codes; 0 takes the likeliest code.
      dtype, tokenizer_dtype: Dtypes of matrix products, "float32" or "bfloat16"; rounding in the tokenizer
        may change codes.
      remat, scan: See `MAE`.
    """

    image_size: Size = 256
    width: Size = 768
    depth: Size = 12
    num_heads: Size = 12
    decoder_width: Size = 768
    decoder_depth: Size = 8
    decoder_num_heads: Size = 16
    embedding_std: Number = networks.EMBEDDING_STD
    codebook_size: Size = 1024
    codebook_width: Size = 256
    base_channels: Size = 128
    channel_multipliers: Sizes = (1, 1, 2, 2, 4)
    num_res_blocks: Count = 2
    groups: Size = 32
    dropped: float = 0.5
    mask_mean: Number = 0.55
    mask_std: Number = 0.25
    dropout: float = 0.1
    label_smoothing: float = 0.1
    hole_color: tuple[float, ...] = (0.485, 0.456, 0.406)
    paint_masked: bool = False
    hidden_margin: Count = 1
    blend_margin: Count = 14
    blend_sigma: Number = 7.0
    decoding_steps: Size = 20
    choice_temperature: float = 6.0
    sampling_temperature: float = 1.0
    value_range: tuple[float, float] = (0.0, 1.0)
    channels: Size = 3
    dtype: str = "float32"
    tokenizer_dtype: str = "float32"
    remat: bool = False
    scan: bool = False

    VARIANTS = convert.VARIANTS  # not annotated, so not dataclass fields
    FORMATS = (convert.Format(),)
    TRAINED_WITH = ("num_heads", "decoder_num_heads", "groups", "value_range")
    corruption_parts = precompute_parts = ("tokenizer",)
    attention_layers = ("qkv", "proj")

    def __post_init__(self):
        if self.image_size % self.patch_size:
            token = f"{self.patch_size} pixels of a token that channel_multipliers mean"
            raise ValueError(f"image_size {self.image_size} is not a multiple of the {token}")
        for width, heads, noun in (
            (self.width, self.num_heads, "heads of the encoder"),
            (self.decoder_width, self.decoder_num_heads, "heads of the decoder"),
            *((self.base_channels * m, self.groups, "groups") for m in self.channel_multipliers),
        ):
            if width % heads:
                raise ValueError(f"{width} channels do not divide into {heads} {noun}")
        limits: dict[str, float] = dict(dropped=1, dropout=1, label_smoothing=1)
        limits |= dict(choice_temperature=math.inf, sampling_temperature=math.inf)
        self._check_fields(limits, dtype=DTYPES, tokenizer_dtype=DTYPES)
        if len(self.hole_color) != self.channels:
            raise ValueError(f"hole_color {self.hole_color} must have {self.channels} channels")

    @property
    def patch_size(self) -> int:
        """Side of a token's square in pixels."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def grid(self) -> int:
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        return self.grid**2

    @property
    def code(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.tokens,), np.uint16)

    @property
    def vocabulary(self) -> int:
        return self.codebook_size + convert.CLASSES_AND_MASK

    @property
    def class_id(self) -> int:
        return self.codebook_size + 76

    @property
    def mask_id(self) -> int:
        return self.vocabulary - 1

    @property
    def why_no_codes(self) -> str:
        return "with config.model.paint_masked the codes depend on the mask of every step" * self.paint_masked

    def canonical(self) -> "MAGE":
        """Set channel multipliers to 1 where they have no effect, which is without residual blocks."""
        if self.num_res_blocks:
            return self
        *others, last = self.channel_multipliers
        return dataclasses.replace(self, channel_multipliers=(*(1 for _ in others), last))

    @property
    def tokenizer(self) -> VQGAN:
        names = ("base_channels", "channel_multipliers", "num_res_blocks", "groups", "remat")
        sizes = {name: getattr(self, name) for name in names}
        levels = Levels(**sizes, dtype=jnp.dtype(self.tokenizer_dtype))
        return VQGAN(self.codebook_size, self.codebook_width, self.channels, levels)

    @property
    def encoder(self) -> networks.Encoder:
        sizes = self.vocabulary, 1 + self.tokens, self.width
        return networks.Encoder(*sizes, vit.stack(self, ""), self.dropout, self.embedding_std)

    @property
    def decoder(self) -> networks.Decoder:
        blocks = vit.stack(self, "decoder_")
        return networks.Decoder(1 + self.tokens, self.decoder_width, blocks, self.embedding_std)

    def in_compute_dtype(self, params: Params) -> Params:
        outer = tuple(f"tokenizer/{half}/conv_out" for half in ("encoder", "decoder"))
        tokenizer = in_dtype(params, jnp.dtype(self.tokenizer_dtype), float32=outer)
        networks = in_dtype(params, jnp.dtype(self.dtype))
        return {part: (tokenizer if part == "tokenizer" else networks)[part] for part in params}

    def init(self, rng: Array) -> Params:
        tokenizer_rng, encoder_rng, decoder_rng = jax.random.split(rng, 3)
        image = jnp.zeros((1, self.patch_size, self.patch_size, self.channels))
        ids = jnp.zeros((1, 2), jnp.int32)
        source = jnp.zeros((1, 1 + self.tokens), jnp.int32)
        latent, words = jnp.zeros((1, 2, self.width)), jnp.zeros((self.vocabulary, self.width))
        return {
            "tokenizer": self.tokenizer.init(tokenizer_rng, image)["params"],
            "encoder": self.encoder.init(encoder_rng, ids, ids)["params"],
            "decoder": self.decoder.init(decoder_rng, latent, source, words)["params"],
            "unused": networks.unused_tensors(self.width, self.decoder_width, self.patch_size, self.channels),
        }

    def precompute(self, params: Params, images: Array, rng: Array) -> Array:
        return self.tokenize(params, images)

    def tokenize(self, params: Params, images: Array) -> Array:
        """Return codes, int32 `[batch, token]`, row-major."""
        ids = apply(self.tokenizer, params["tokenizer"], images, method="tokenize")
        return ids.reshape(images.shape[0], -1)

    def decode_ids(self, params: Params, ids: Array) -> Array:
        """Decode codes `[batch, tokens]` to images, float32, not clipped."""
        ids = ids.reshape(-1, self.grid, self.grid)
        return apply(self.tokenizer, params["tokenizer"], ids, method="decode_ids")

    def corrupt(self, params: Params, images: Array, rng: Array, axis_name: str | None = None) -> Corrupted:
        """Tokenize, drop the fraction `dropped` of the tokens, and mask some of the others; see `mask`.

        With dropout, the result has `dropout_keep`, bool `[batch, 1 + kept, width]`. Without `paint_masked`,
        `images` may be precomputed codes `[batch, tokens]`; then no parameters are read.
        """
        mask_key, dropout_key = jax.random.split(rng)
        drawn = self._draw_mask(images.shape[0], mask_key, axis_name)
        codes = images.astype(jnp.int32) if images.ndim == 2 else self.tokenize(params, images)
        corrupted = self.mask(codes, *drawn)
        if self.paint_masked:
            painted = self._paint_tokens(images, corrupted["masked"])
            corrupted["ids"] = self.mask(self.tokenize(params, painted), *drawn)["ids"]
        if self.dropout:
            shape, keep = (corrupted["ids"].shape[1], self.width), 1 - self.dropout
            corrupted["dropout_keep"] = draw_rows(
                lambda n: jax.random.bernoulli(dropout_key, keep, (n, *shape)), len(images), axis_name
            )
        return corrupted

    def _draw_mask(self, rows: int, rng: Array, axis_name: str | None) -> tuple[Array, int, Array]:
        """Sample the arguments of `random_masking` for a batch."""
        noise_key, share_key = jax.random.split(rng)
        num_drop = math.ceil(self.tokens * self.dropped)
        mean, std = self.mask_mean, self.mask_std
        lower, upper = ((end - mean) / std for end in (self.dropped, 1.0))
        share = mean + std * jax.random.truncated_normal(share_key, lower, upper)
        num_mask = jnp.ceil(self.tokens * share).astype(jnp.int32)
        noise = draw_rows(lambda n: jax.random.uniform(noise_key, (n, self.tokens)), rows, axis_name)
        return noise, num_drop, jnp.clip(num_mask, max(num_drop, 1), self.tokens)

    def _paint(self, images: Array, mask: Array | np.ndarray) -> Array:
        """Fill the pixels of `mask`, bool `[batch or 1, height, width]`, with `hole_color`."""
        color = jnp.asarray(self.hole_color, images.dtype).reshape(1, 1, 1, -1)
        return jnp.where(mask[..., None], color, images)

    def _paint_tokens(self, images: Array, tokens: Array) -> Array:
        """Fill the squares of `tokens`, bool `[batch, token]`, with `hole_color`."""
        mask = tokens.reshape(-1, self.grid, self.grid)
        return self._paint(images, mask.repeat(self.patch_size, axis=1).repeat(self.patch_size, axis=2))

    def mask(self, ids: Array, noise: Array, num_drop: int, num_mask: int | Array) -> Corrupted:
        """Corrupt codes `[batch, tokens]` with given arguments of `random_masking`.

        Returns:
          `ids` `[batch, 1 + kept]`, the encoder's input, class token first; `targets`, the codes; and the
          results of `random_masking`.
        """
        masked, positions, source = networks.random_masking(noise, num_drop, num_mask)
        tokens = self._with_class_token(jnp.where(masked, self.mask_id, ids))
        return {
            "ids": jnp.take_along_axis(tokens, positions, axis=1),
            "positions": positions,
            "source": source,
            "targets": ids,
            "masked": masked,
        }

    def _with_class_token(self, ids: Array) -> Array:
        return jnp.pad(ids, ((0, 0), (1, 0)), constant_values=self.class_id)

    def encode(self, encoder_params: Any, corrupted: Corrupted) -> Array:
        """Return features `[batch, 1 + kept, width]`, class token first."""
        inputs = corrupted["ids"], corrupted["positions"], corrupted.get("dropout_keep")
        return apply(self.encoder, encoder_params, *inputs)

    def decode(self, params: Params, latent: Array, source: Array, count: int | None = None) -> Array:
        """Return float32 logits `[batch, 1 + tokens, vocabulary]`, or those of the first `count` words.

        The token head reads the encoder's word embeddings without propagating gradients to them.
        """
        words = jax.lax.stop_gradient(params["encoder"]["token_emb"]["word_embeddings"])
        return apply(self.decoder, params["decoder"], latent, source, words, count)

    def predict(self, params: Params, corrupted: Corrupted) -> Array:
        """Return logits of the codes, float32 `[batch, tokens, codes]`."""
        return self.encode_and_predict(params, corrupted)[1]

    def encode_and_predict(self, params: Params, corrupted: Corrupted) -> tuple[Array, Array]:
        latent = self.encode(params["encoder"], corrupted)
        return latent, self.decode(params, latent, corrupted["source"], self.codebook_size)[:, 1:]

    def prediction_loss(self, predicted: Array, images: Array, corrupted: Corrupted) -> Array:
        """Return the mean label-smoothed cross-entropy over the masked tokens, float32 `[batch]`."""
        del images  # `corrupted` holds their codes
        log_probability = jax.nn.log_softmax(predicted)
        of_target = jnp.take_along_axis(log_probability, corrupted["targets"][..., None], axis=-1)
        loss = -(1 - self.label_smoothing) * of_target[..., 0]
        loss -= self.label_smoothing * log_probability.mean(axis=-1)
        return _mean_of_masked(loss, corrupted)

    def imitation_loss(self, predicted: Array, corrupted: Corrupted, target: Array) -> Array:
        """Return the mean cross-entropy to the softmax of `target` over the masked tokens, `[batch]`."""
        log_probability = jax.nn.log_softmax(predicted)
        return _mean_of_masked(-(jax.nn.softmax(target) * log_probability).sum(axis=-1), corrupted)

    def with_truth(
        self, params: Params, images: Array, corrupted: Corrupted, truth: Array
    ) -> tuple[Array, Corrupted]:
        """Use the codes of `truth` as targets; the encoder's input is unchanged."""
        return images, {**corrupted, "targets": self.tokenize(params, truth)}

    def noisy_truth(
        self, images: Array, corrupted: Corrupted, noise: Array, rng: Array, axis_name: str | None = None
    ) -> tuple[Array, Corrupted]:
        """Use codes of `draw_noise_codes` as targets, as in the released code."""
        targets = networks.draw_noise_codes(rng, corrupted["targets"], self.codebook_size, axis_name)
        return images, {**corrupted, "targets": targets}

    def tokenizer_loss(self, params: Params, inputs: tuple[Array, ...]) -> Array:
        """Return the mean squared error of the reconstruction plus the codebook losses, `[batch]`.

        This suffices for small images; published tokenizers add perceptual and adversarial losses. With
        `paint_masked`, an image is reconstructed from the codes of its filled version and, in the filled
        region, from its own codes, as in inpainting: codes learn to describe only their own square.
        """
        decoded, codebook_loss = apply(self.tokenizer, params["tokenizer"], *inputs)
        return jnp.square(decoded - inputs[0]).mean(axis=(1, 2, 3)) + codebook_loss

    def pretraining_stages(self) -> tuple[base.PretrainingStage, ...]:
        def prepare(frozen, images, rng, axis_name=None):
            if not self.paint_masked:
                return (images,)
            noise, _, num_mask = self._draw_mask(images.shape[0], rng, axis_name)
            masked, _, _ = networks.random_masking(noise, 0, num_mask)
            return images, self._paint_tokens(images, masked), masked.reshape(-1, self.grid, self.grid)

        tokenizer = base.PretrainingStage("tokenizer", ("tokenizer",), prepare, self.tokenizer_loss)
        return (tokenizer, *super().pretraining_stages())

    @property
    def inpaint_passes(self) -> int:
        return self.decoding_steps

    def inpaint(self, params: Params, images: Array, mask: np.ndarray, rng: Array) -> Array:
        """Tokenize, decode the hidden tokens, and blend the decoded image into the input.

        The masked region is filled with `hole_color` before the image is tokenized. That color remains
        visible where the weight of the decoded image is below 1 inside the mask.
        """
        return self._inpaint(params, images, mask, rng)[0]

    def _inpaint(
        self, params: Params, images: Array, mask: np.ndarray, rng: Array
    ) -> tuple[Array, Array, np.ndarray]:
        """Return reconstructions, their codes `[batch, tokens]`, and the hidden tokens, bool `[tokens]`."""
        mask = self._check_mask(mask)
        hidden = decoding.hidden_tokens(mask, self.patch_size, self.hidden_margin)
        if hidden.all():
            grown = f"the mask, grown by {self.hidden_margin} tokens,"
            raise ValueError(f"{grown} hides every token: nothing is left to inpaint from")
        painted = self._paint(images, mask[None])
        ids = jnp.where(hidden[None], self.mask_id, self.tokenize(params, painted))
        steps = self.decoding_steps, self.choice_temperature
        schedule = decoding.decoding_schedule(self.tokens, int(hidden.sum()), *steps)
        complete = functools.partial(self.complete, params)
        draw = rng, self.sampling_temperature
        ids = decoding.decode_masked(complete, ids, self.mask_id, schedule, *draw)
        weight = decoding.blend_weights(mask, self.blend_margin, self.blend_sigma)[None, ..., None]
        blended = self.decode_ids(params, ids) * weight + painted * (1 - weight)
        return jnp.clip(blended, *self.value_range), ids, hidden

    why_no_samples = ""

    def sample(
        self, params: Params, images: Array, mask: np.ndarray, rng: Array, noise: Array | None = None
    ) -> tuple[Array, Array]:
        """Draw a sample; the misfit is minus the mean log-likelihood of visible codes next to hidden ones.

        If `inpaint` takes the likeliest codes, they are sampled at temperature 1 here.
        """
        drawing = dataclasses.replace(self, sampling_temperature=self.sampling_temperature or 1.0)
        inpainted, ids, hidden = drawing._inpaint(params, images, mask, rng)
        ring = masks.grow(hidden.reshape(self.grid, self.grid), 1).reshape(-1) & ~hidden
        logits = self.complete(params, jnp.where(ring[None], self.mask_id, ids))
        likelihood = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], axis=-1)[..., 0]
        return inpainted, -likelihood[:, ring].mean(axis=1)

    def complete(self, params: Params, ids: Array) -> Array:
        """Predict logits from tokens `[batch, tokens]`, `mask_id` where hidden, without dropping any."""
        tokens = self._with_class_token(ids)
        positions = jnp.broadcast_to(jnp.arange(1 + self.tokens)[None], tokens.shape)
        source = jnp.where(tokens == self.mask_id, 0, positions)
        return self.predict(params, {"ids": tokens, "positions": positions, "source": source})


def _mean_of_masked(loss: Array, corrupted: Corrupted) -> Array:
    """Average `[batch, token]` over the masked tokens; all images of a batch have the same number."""
    return jnp.sum(loss * corrupted["masked"], axis=1) / jnp.sum(corrupted["masked"], axis=1)
