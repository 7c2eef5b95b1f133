"""MAGE (Li et al. 2023, arXiv 2211.09117): a masked autoencoder over the tokens of a VQGAN.

Equal to the release of "Machine Unlearning for Image-to-Image Generative Models" on the arrays in
`tests/reference`.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from l2l_jax.models import mage_corruption, mage_decoding, mage_networks
from l2l_jax.models.base import ImageToImageModel, Params, PretrainingStage, Seen
from l2l_jax.models.mage_networks import Decoder, Encoder, random_masking, unused_tensors
from l2l_jax.models.precision import in_dtype
from l2l_jax.models.vqgan import VQGAN

VARIANTS = {
    "vit_base_patch16": dict(width=768, depth=12, num_heads=12, decoder_width=768),
    "vit_large_patch16": dict(width=1024, depth=24, num_heads=16, decoder_width=1024),
}
"""Published sizes; their tokenizer and the rest of their decoder are the defaults of `MAGE`."""


@dataclasses.dataclass(frozen=True)
class MAGE(ImageToImageModel):
    """MAGE over square images.

    Parts of the parameters: "tokenizer" (the whole VQGAN), "encoder" (token embedding and ViT: what
    the paper's method trains), "decoder" (ViT decoder and token head), and "unused": tensors of the
    released state dict that take no part in anything, kept so that exported weights load strictly.

    The vocabulary is the codebook, 1,000 classes that are not used, and the mask token last; the
    class token borrows the id `codebook_size + 76` of one of the classes, as in the release.

    Attributes:
      image_size: side of the images in pixels, a multiple of `patch_size`.
      width, depth, num_heads: encoder.
      decoder_width, decoder_depth, decoder_num_heads: decoder.
      embedding_std: of fresh word and position embeddings; greater ones learn faster from nothing.
      codebook_size, codebook_width, base_channels, channel_multipliers, num_res_blocks, groups:
        tokenizer, see `VQGAN`.
      dropped: share of the tokens that the encoder does not get to see, rounded up to whole tokens.
      mask_mean, mask_std: of the share of masked tokens, dropped ones included: a normal
        distribution truncated to [`dropped`, 1], drawn once per batch.
      dropout: of the token embeddings, in what `corrupt` returns. Student and teacher share its
        draw; in the release the teacher has none.
      label_smoothing: of the cross-entropy.
      hole_color: per channel, put into the hole before the image is tokenised.
      paint_masked: in training, paint the pixels of masked tokens in `hole_color` before the tokens
        that stay visible are computed, as restoration does with the hole. Not so in the release.
      hidden_margin: tokens by which the hole is grown for decoding.
      blend_margin, blend_sigma: pixels by which the hole is grown and then blurred for blending;
        14 and 7 of the release go with 256 pixels; 0 and 0 replace the hole and nothing else.
      decoding_steps: of the iterative decoding.
      choice_temperature: of the noise on how certain a token is; 0 fixes the most certain ones first.
      sampling_temperature: of the softmax that codes are drawn from; 0 takes the likeliest code.
      value_range: least and greatest pixel value.
      dtype: "float32" or "bfloat16", of the products; see `l2l_jax.models.precision`.
      tokenizer_dtype: the same of the tokenizer, whose rounding may turn one code into another.
      remat: compute the inside of every block again in the backward pass, instead of keeping it.
      scan: loop over one compiled transformer block: compiles many times faster; see `vit.Stack`.
    """

    image_size: int = 256
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    decoder_width: int = 768
    decoder_depth: int = 8
    decoder_num_heads: int = 16
    embedding_std: float = mage_networks.EMBEDDING_STD
    codebook_size: int = 1024
    codebook_width: int = 256
    base_channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    groups: int = 32
    dropped: float = 0.5
    mask_mean: float = 0.55
    mask_std: float = 0.25
    dropout: float = 0.1
    label_smoothing: float = 0.1
    hole_color: tuple[float, ...] = (0.485, 0.456, 0.406)
    paint_masked: bool = False
    hidden_margin: int = 1
    blend_margin: int = 14
    blend_sigma: float = 7.0
    decoding_steps: int = 20
    choice_temperature: float = 6.0
    sampling_temperature: float = 1.0
    value_range: tuple[float, float] = (0.0, 1.0)
    channels: int = 3
    dtype: str = "float32"
    tokenizer_dtype: str = "float32"
    remat: bool = False
    scan: bool = False

    corruption_parts = ("tokenizer",)

    def __post_init__(self):
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of the {self.patch_size} pixels "
                f"of a token that {len(self.channel_multipliers)} channel_multipliers mean"
            )
        for width, heads, what in (
            (self.width, self.num_heads, "heads of the encoder"),
            (self.decoder_width, self.decoder_num_heads, "heads of the decoder"),
            *((self.base_channels * m, self.groups, "groups") for m in self.channel_multipliers),
        ):
            if width % heads:
                raise ValueError(f"{width} channels do not divide into {heads} {what}")
        limits = dict(dropped=1, dropout=1, label_smoothing=1)
        limits |= dict(choice_temperature=math.inf, sampling_temperature=math.inf)
        for name, limit in limits.items():
            if not 0 <= getattr(self, name) < limit:
                raise ValueError(f"{name} must lie in [0, {limit}), not {getattr(self, name)}")
        if len(self.hole_color) != self.channels:
            raise ValueError(f"hole_color {self.hole_color} must have {self.channels} channels")
        for name in ("dtype", "tokenizer_dtype"):
            if getattr(self, name) not in ("float32", "bfloat16"):
                raise ValueError(f"{name} must be float32 or bfloat16, not {getattr(self, name)!r}")

    @property
    def patch_size(self) -> int:
        """Side in pixels of the square that a token stands for."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def grid(self) -> int:
        """Tokens along a side."""
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Tokens of an image, row-major."""
        return self.grid**2

    @property
    def why_no_codes(self) -> str:
        """See `ImageToImageModel`; with `paint_masked` codes depend on the mask of a step."""
        return "with config.model.paint_masked the codes depend on the mask of every step" * self.paint_masked

    @property
    def vocabulary(self) -> int:
        """Codes, classes and the mask token."""
        return self.codebook_size + 1001

    @property
    def class_id(self) -> int:
        """The id of the class token."""
        return self.codebook_size + 76

    @property
    def mask_id(self) -> int:
        """The id of a masked token."""
        return self.vocabulary - 1

    @property
    def tokenizer(self) -> VQGAN:
        """The tokenizer as a Linen module."""
        return VQGAN(
            self.codebook_size, self.codebook_width, self.base_channels, self.channel_multipliers,
            self.num_res_blocks, self.groups, self.channels, jnp.dtype(self.tokenizer_dtype), self.remat,
        )  # fmt: skip

    @property
    def encoder(self) -> Encoder:
        """The encoder as a Linen module."""
        return Encoder(
            self.vocabulary, 1 + self.tokens, self.width, self.depth, self.num_heads, self.dropout,
            jnp.dtype(self.dtype), self.embedding_std, self.remat, self.scan,
        )  # fmt: skip

    @property
    def decoder(self) -> Decoder:
        """The decoder as a Linen module."""
        return Decoder(
            1 + self.tokens, self.decoder_width, self.decoder_depth, self.decoder_num_heads,
            jnp.dtype(self.dtype), self.embedding_std, self.remat, self.scan,
        )  # fmt: skip

    def in_compute_dtype(self, params: Params) -> Params:
        outer = tuple(f"tokenizer/{half}/conv_out" for half in ("encoder", "decoder"))
        tokenizer = in_dtype(params, jnp.dtype(self.tokenizer_dtype), float32=outer)
        networks = in_dtype(params, jnp.dtype(self.dtype))
        return {part: (tokenizer if part == "tokenizer" else networks)[part] for part in params}

    def init(self, rng: jax.Array) -> Params:
        tokenizer_rng, encoder_rng, decoder_rng = jax.random.split(rng, 3)
        image = jnp.zeros((1, self.patch_size, self.patch_size, self.channels))
        ids = jnp.zeros((1, 2), jnp.int32)
        source = jnp.zeros((1, 1 + self.tokens), jnp.int32)
        latent, words = jnp.zeros((1, 2, self.width)), jnp.zeros((self.vocabulary, self.width))
        return {
            "tokenizer": self.tokenizer.init(tokenizer_rng, image)["params"],
            "encoder": self.encoder.init(encoder_rng, ids, ids)["params"],
            "decoder": self.decoder.init(decoder_rng, latent, source, words)["params"],
            "unused": unused_tensors(self.width, self.decoder_width, self.patch_size, self.channels),
        }

    def tokenize(self, params: Params, images: jax.Array) -> jax.Array:
        """Images → codes, int32 `[batch, tokens]`, row-major."""
        ids = self.tokenizer.apply({"params": params["tokenizer"]}, images, method="tokenize")
        return ids.reshape(images.shape[0], -1)

    def decode_ids(self, params: Params, ids: jax.Array) -> jax.Array:
        """Codes `[batch, tokens]` → images, float32, not clipped."""
        ids = ids.reshape(-1, self.grid, self.grid)
        return self.tokenizer.apply({"params": params["tokenizer"]}, ids, method="decode_ids")

    def corrupt(
        self, params: Params, images: jax.Array, rng: jax.Array, axis_name: str | None = None
    ) -> Seen:
        """Tokenise, drop a share `dropped` of the tokens, mask some of the others.

        Without `paint_masked`, `images` may be codes `[batch, tokens]` that were computed before; then no
        parameters are read.

        Returns:
          What `mask` returns and, with dropout, `dropout_keep`, bool `[batch, 1 + kept, width]`.
        """
        return mage_corruption.corrupt(self, params, images, rng, axis_name)

    def mask(self, ids: jax.Array, noise: jax.Array, num_drop: int, num_mask: int | jax.Array) -> Seen:
        """`corrupt` with the codes `[batch, tokens]` given, and what `random_masking` takes.

        Returns:
          `ids` `[batch, 1 + kept]`, what the encoder sees, class token first; `targets`
          `[batch, tokens]`, the codes; `masked`, `positions` and `source` of `random_masking`.
        """
        masked, positions, source = random_masking(noise, num_drop, num_mask)
        whole = self._with_class_token(jnp.where(masked, self.mask_id, ids))
        return {
            "ids": jnp.take_along_axis(whole, positions, axis=1),
            "positions": positions,
            "source": source,
            "targets": ids,
            "masked": masked,
        }

    def _with_class_token(self, ids: jax.Array) -> jax.Array:
        return jnp.pad(ids, ((0, 0), (1, 0)), constant_values=self.class_id)

    def encode(self, encoder_params: Any, seen: dict[str, jax.Array]) -> jax.Array:
        """Tokens `[batch, 1 + kept, width]`, class token first; dropout as `seen` says."""
        inputs = seen["ids"], seen["positions"], seen.get("dropout_keep")
        return self.encoder.apply({"params": encoder_params}, *inputs)

    def decode(
        self, params: Params, latent: jax.Array, source: jax.Array, count: int | None = None
    ) -> jax.Array:
        """Float32 logits `[batch, 1 + tokens, vocabulary]`, or of the first `count` words only.

        The token head reads the encoder's word embeddings, and sends them no gradient.
        """
        words = jax.lax.stop_gradient(params["encoder"]["token_emb"]["word_embeddings"])
        return self.decoder.apply({"params": params["decoder"]}, latent, source, words, count)

    def predict(self, params: Params, seen: dict[str, jax.Array]) -> jax.Array:
        """Encoder and decoder together: logits of the codes, float32 `[batch, tokens, codes]`."""
        latent = self.encode(params["encoder"], seen)
        return self.decode(params, latent, seen["source"], self.codebook_size)[:, 1:]

    def generative_loss(self, params: Params, images: jax.Array, seen: dict[str, jax.Array]) -> jax.Array:
        """Label-smoothed cross-entropy, float32 `[batch]`: the sum over the masked tokens of an
        image, divided by their number in that image.

        The release divides the sum over a batch by the number in the batch. As the images of a
        batch have equally many masked tokens, that is the mean of what is returned here.
        """
        del images  # `seen` holds their codes
        log_probability = jax.nn.log_softmax(self.predict(params, seen))
        of_target = jnp.take_along_axis(log_probability, seen["targets"][..., None], axis=-1)
        loss = -(1 - self.label_smoothing) * of_target[..., 0]
        loss -= self.label_smoothing * log_probability.mean(axis=-1)
        return jnp.sum(loss * seen["masked"], axis=1) / jnp.sum(seen["masked"], axis=1)

    def imitation_loss(self, params: Params, seen: dict[str, jax.Array], target: jax.Array) -> jax.Array:
        """Cross-entropy to the probabilities of `target` logits, mean over the masked tokens, `[batch]`."""
        log_probability = jax.nn.log_softmax(self.predict(params, seen))
        loss = -(jax.nn.softmax(target) * log_probability).sum(axis=-1)
        return jnp.sum(loss * seen["masked"], axis=1) / jnp.sum(seen["masked"], axis=1)

    def with_truth(
        self, params: Params, images: jax.Array, seen: Seen, truth: jax.Array
    ) -> tuple[jax.Array, Seen]:
        """The codes of `truth` as the targets; what the encoder sees stays."""
        return images, {**seen, "targets": self.tokenize(params, truth)}

    def noisy_truth(
        self, images: jax.Array, seen: Seen, noise: jax.Array, rng: jax.Array, axis_name: str | None = None
    ) -> tuple[jax.Array, Seen]:
        """Codes of `draw_noise_codes` as the targets, as released."""
        targets = mage_networks.draw_noise_codes(rng, seen["targets"], self.codebook_size, axis_name)
        return images, {**seen, "targets": targets}

    def tokenizer_loss(self, params: Params, inputs: tuple[jax.Array, ...]) -> jax.Array:
        """Mean squared error of the reconstruction plus the codebook losses, `[batch]`.

        Enough for small images; published tokenizers add perceptual and adversarial losses.
        With `paint_masked` an image is reconstructed from the codes of its painted version and,
        in the painted part, its own, as in restoration: the codes learn to describe their own
        square, whatever is beside it.
        """
        restored, codebook_loss = self.tokenizer.apply({"params": params["tokenizer"]}, *inputs)
        return jnp.square(restored - inputs[0]).mean(axis=(1, 2, 3)) + codebook_loss

    def pretraining_stages(self) -> tuple[PretrainingStage, ...]:
        """First the tokenizer, then encoder and decoder on its tokens."""

        def prepare(frozen, images, rng, axis_name=None):
            return mage_corruption.tokenizer_inputs(self, images, rng, axis_name)

        tokenizer = PretrainingStage("tokenizer", ("tokenizer",), prepare, self.tokenizer_loss)
        return (tokenizer, *super().pretraining_stages())

    def restore(self, params: Params, images: jax.Array, hole: np.ndarray, rng: jax.Array) -> jax.Array:
        """Iterative decoding of the hidden tokens, blended in: see `mage_decoding.restore`."""
        return mage_decoding.restore(self, params, images, hole, rng)

    def complete(self, params: Params, ids: jax.Array) -> jax.Array:
        """`predict` for tokens `[batch, tokens]`, `mask_id` where hidden, none of them dropped."""
        whole = self._with_class_token(ids)
        positions = jnp.broadcast_to(jnp.arange(1 + self.tokens)[None], whole.shape)
        source = jnp.where(whole == self.mask_id, 0, positions)
        return self.predict(params, {"ids": whole, "positions": positions, "source": source})
