"""MAGE (Li et al. 2023, arXiv 2211.09117): a masked autoencoder over the tokens of a VQGAN.

Equal to the release of "Machine Unlearning for Image-to-Image Generative Models" on the arrays in
`tests/reference`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from l2l_jax.models.base import Corrupted, Model, Params, PretrainingStage
from l2l_jax.models.layers.precision import in_dtype
from l2l_jax.models.mage import corruption as mage_corruption
from l2l_jax.models.mage import decoding as mage_decoding
from l2l_jax.models.mage import networks as mage_networks
from l2l_jax.models.mage.networks import Decoder, Encoder, random_masking, unused_tensors
from l2l_jax.models.mage.settings import MAGESettings
from l2l_jax.models.mage.vqgan import VQGAN
from l2l_jax.utils.batch_axis import draw_rows

VARIANTS = {
    "vit_base_patch16": dict(width=768, depth=12, num_heads=12, decoder_width=768),
    "vit_large_patch16": dict(width=1024, depth=24, num_heads=16, decoder_width=1024),
}
"""Published sizes; their tokenizer and the rest of their decoder are the defaults of `MAGE`."""


@dataclasses.dataclass(frozen=True)
class MAGE(MAGESettings, Model):
    """MAGE over square images.

    Parts of the parameters: "tokenizer" (the whole VQGAN), "encoder" (token embedding and ViT: what
    the paper's method trains), "decoder" (ViT decoder and token head), and "unused": tensors of the
    released state dict that take no part in anything, kept so that exported weights load strictly.

    Its fields are those of `l2l_jax.models.mage.settings.MAGESettings`.
    """

    corruption_parts = ("tokenizer",)

    @property
    def why_no_codes(self) -> str:
        """See `Model`; with `paint_masked` codes depend on the mask of a step."""
        return "with config.model.paint_masked the codes depend on the mask of every step" * self.paint_masked

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
    ) -> Corrupted:
        """Tokenise, drop a share `dropped` of the tokens, mask some of the others.

        Without `paint_masked`, `images` may be codes `[batch, tokens]` that were computed before; then no
        parameters are read.

        Returns:
          What `mask` returns and, with dropout, `dropout_keep`, bool `[batch, 1 + kept, width]`.
        """
        mask_key, dropout_key = jax.random.split(rng)
        drawn = mage_corruption.draw_mask(self, images.shape[0], mask_key, axis_name)
        codes = images.astype(jnp.int32) if images.ndim == 2 else self.tokenize(params, images)
        corrupted = self.mask(codes, *drawn)
        if self.paint_masked:
            painted = mage_corruption.paint_tokens(self, images, corrupted["masked"])
            corrupted["ids"] = self.mask(self.tokenize(params, painted), *drawn)["ids"]
        if self.dropout:
            shape, keep = (corrupted["ids"].shape[1], self.width), 1 - self.dropout
            corrupted["dropout_keep"] = draw_rows(
                lambda n: jax.random.bernoulli(dropout_key, keep, (n, *shape)), len(images), axis_name
            )
        return corrupted

    def mask(self, ids: jax.Array, noise: jax.Array, num_drop: int, num_mask: int | jax.Array) -> Corrupted:
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

    def encode(self, encoder_params: Any, corrupted: dict[str, jax.Array]) -> jax.Array:
        """Tokens `[batch, 1 + kept, width]`, class token first; dropout as `corrupted` says."""
        inputs = corrupted["ids"], corrupted["positions"], corrupted.get("dropout_keep")
        return self.encoder.apply({"params": encoder_params}, *inputs)

    def decode(
        self, params: Params, latent: jax.Array, source: jax.Array, count: int | None = None
    ) -> jax.Array:
        """Float32 logits `[batch, 1 + tokens, vocabulary]`, or of the first `count` words only.

        The token head reads the encoder's word embeddings, and sends them no gradient.
        """
        words = jax.lax.stop_gradient(params["encoder"]["token_emb"]["word_embeddings"])
        return self.decoder.apply({"params": params["decoder"]}, latent, source, words, count)

    def predict(self, params: Params, corrupted: dict[str, jax.Array]) -> jax.Array:
        """Encoder and decoder together: logits of the codes, float32 `[batch, tokens, codes]`."""
        latent = self.encode(params["encoder"], corrupted)
        return self.decode(params, latent, corrupted["source"], self.codebook_size)[:, 1:]

    def prediction_loss(
        self, predicted: jax.Array, images: jax.Array, corrupted: dict[str, jax.Array]
    ) -> jax.Array:
        """Label-smoothed cross-entropy, float32 `[batch]`: the sum over the masked tokens of an
        image, divided by their number in that image.

        The release divides the sum over a batch by the number in the batch. As the images of a
        batch have equally many masked tokens, that is the mean of what is returned here.
        """
        del images  # `corrupted` holds their codes
        log_probability = jax.nn.log_softmax(predicted)
        of_target = jnp.take_along_axis(log_probability, corrupted["targets"][..., None], axis=-1)
        loss = -(1 - self.label_smoothing) * of_target[..., 0]
        loss -= self.label_smoothing * log_probability.mean(axis=-1)
        return jnp.sum(loss * corrupted["masked"], axis=1) / jnp.sum(corrupted["masked"], axis=1)

    def imitation_loss(
        self, predicted: jax.Array, corrupted: dict[str, jax.Array], target: jax.Array
    ) -> jax.Array:
        """Cross-entropy to the probabilities of `target` logits, mean over the masked tokens, `[batch]`."""
        log_probability = jax.nn.log_softmax(predicted)
        loss = -(jax.nn.softmax(target) * log_probability).sum(axis=-1)
        return jnp.sum(loss * corrupted["masked"], axis=1) / jnp.sum(corrupted["masked"], axis=1)

    def with_truth(
        self, params: Params, images: jax.Array, corrupted: Corrupted, truth: jax.Array
    ) -> tuple[jax.Array, Corrupted]:
        """The codes of `truth` as the targets; what the encoder sees stays."""
        return images, {**corrupted, "targets": self.tokenize(params, truth)}

    def noisy_truth(
        self,
        images: jax.Array,
        corrupted: Corrupted,
        noise: jax.Array,
        rng: jax.Array,
        axis_name: str | None = None,
    ) -> tuple[jax.Array, Corrupted]:
        """Codes of `draw_noise_codes` as the targets, as released."""
        targets = mage_networks.draw_noise_codes(rng, corrupted["targets"], self.codebook_size, axis_name)
        return images, {**corrupted, "targets": targets}

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

    def inpaint(self, params: Params, images: jax.Array, mask: np.ndarray, rng: jax.Array) -> jax.Array:
        """Fill a mask: tokenise, decode what is hidden, blend the decoded image in.

        The mask is painted in `hole_color` before the image is tokenised; that colour remains where the
        weight of the decoded image falls short of 1 inside the mask. The result lies within `value_range`.

        Args:
          params: all parts.
          images: `[batch, height, width, channel]`.
          mask: bool `[height, width]`, True where pixels are missing; a constant under `jit`.
          rng: key of the sampling.

        Raises:
          ValueError: a mask of another shape, or one that hides every token.
        """
        mask = np.asarray(mask, bool)
        if mask.shape != self.image_shape[:2]:
            raise ValueError(f"the mask has shape {mask.shape}, the images {self.image_shape[:2]}")
        hidden = mage_decoding.hidden_tokens(mask, self.patch_size, self.hidden_margin)
        if hidden.all():
            raise ValueError(
                f"the mask, grown by {self.hidden_margin} tokens, hides every token: nothing is left "
                "to restore from"
            )
        painted = mage_corruption.paint(self, images, mask[None])
        ids = jnp.where(hidden[None], self.mask_id, self.tokenize(params, painted))
        schedule = mage_decoding.decoding_schedule(
            self.tokens, int(hidden.sum()), self.decoding_steps, self.choice_temperature
        )
        ids = mage_decoding.decode_masked(
            lambda ids: self.complete(params, ids), ids, self.mask_id, schedule, rng,
            self.sampling_temperature,
        )  # fmt: skip
        weight = mage_decoding.blend_weights(mask, self.blend_margin, self.blend_sigma)[None, ..., None]
        blended = self.decode_ids(params, ids) * weight + painted * (1 - weight)
        return jnp.clip(blended, *self.value_range)

    def complete(self, params: Params, ids: jax.Array) -> jax.Array:
        """`predict` for tokens `[batch, tokens]`, `mask_id` where hidden, none of them dropped."""
        whole = self._with_class_token(ids)
        positions = jnp.broadcast_to(jnp.arange(1 + self.tokens)[None], whole.shape)
        source = jnp.where(whole == self.mask_id, 0, positions)
        return self.predict(params, {"ids": whole, "positions": positions, "source": source})
