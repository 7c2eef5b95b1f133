"""The networks of MAGE (see `l2l_jax.models.mage.model`) between tokens and logits, and what it draws.

Parameter names follow the release's, so that checkpoints map by rule (see `l2l_jax.models.mage.convert`).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from l2l_jax.models.layers import vit
from l2l_jax.utils.batch_axis import draw_rows, mean_and_std

EMBEDDING_STD = 0.02
"""Standard deviation of the release's fresh embeddings."""


class TokenEmbedding(nn.Module):
    """Sum of a word and a learned position, normalised."""

    vocabulary: int
    places: int
    width: int
    embedding_std: float = EMBEDDING_STD

    @nn.compact
    def __call__(self, ids: jax.Array, positions: jax.Array) -> jax.Array:
        """`[batch, token]` twice → `[batch, token, width]`, float32."""
        normal = nn.initializers.normal(self.embedding_std)
        words = self.param("word_embeddings", normal, (self.vocabulary, self.width))
        places = self.param("position_embeddings", normal, (self.places, self.width))
        x = jnp.take(words, ids, axis=0) + jnp.take(places, positions, axis=0)
        return nn.LayerNorm(epsilon=1e-6, name="norm")(x)


class Encoder(nn.Module):
    """Token embedding and ViT over the kept tokens."""

    vocabulary: int
    places: int
    width: int
    depth: int
    num_heads: int
    dropout: float
    dtype: jnp.dtype = jnp.float32
    embedding_std: float = EMBEDDING_STD
    remat: bool = False
    scan: bool = False

    @nn.compact
    def __call__(
        self, ids: jax.Array, positions: jax.Array, dropout_keep: jax.Array | None = None
    ) -> jax.Array:
        """Ids and places `[batch, 1 + kept]`, class token first, and which channels of their
        embedding dropout keeps, bool `[batch, 1 + kept, width]` → `[batch, 1 + kept, width]`, float32."""
        embed = TokenEmbedding(self.vocabulary, self.places, self.width, self.embedding_std, name="token_emb")
        x = embed(ids, positions)
        if dropout_keep is not None:
            x = jnp.where(dropout_keep, x / (1 - self.dropout), 0)
        blocks = vit.Stack("blocks", self.depth, self.num_heads, self.dtype, self.remat, self.scan)
        return nn.LayerNorm(epsilon=1e-6, name="norm")(blocks(self, x))


class TokenHead(nn.Module):
    """Logits of the vocabulary by similarity to given word embeddings."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, words: jax.Array, count: int | None = None) -> jax.Array:
        """`[batch, token, decoder width]`, `[vocabulary, width]` → `[batch, token, vocabulary]`, or
        the logits of the first `count` words only."""
        vocabulary, width = words.shape
        x = nn.Dense(width, dtype=self.dtype, kernel_init=vit.xavier, name="fc")(x)
        x = nn.gelu(x.astype(jnp.float32), approximate=False)
        x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="ln")(x)
        bias = self.param("bias", nn.initializers.zeros, (1, 1, vocabulary))
        product = jnp.einsum(
            "btw,vw->btv", x, words[:count].astype(self.dtype), preferred_element_type=jnp.float32
        )
        return product + bias[..., :count]


class Decoder(nn.Module):
    """ViT over all places; masked ones hold the encoded class token."""

    places: int
    width: int
    depth: int
    num_heads: int
    dtype: jnp.dtype = jnp.float32
    embedding_std: float = EMBEDDING_STD
    remat: bool = False
    scan: bool = False

    @nn.compact
    def __call__(
        self, latent: jax.Array, source: jax.Array, words: jax.Array, count: int | None = None
    ) -> jax.Array:
        """The encoder's tokens `[batch, 1 + kept, encoder width]`, which of them goes to each place
        `[batch, places]`, and word embeddings `[vocabulary, encoder width]` → float32 logits
        `[batch, places, vocabulary]`, or those of the first `count` words only."""
        dense = dict(dtype=self.dtype, kernel_init=vit.xavier)
        x = nn.Dense(self.width, name="decoder_embed", **dense)(latent).astype(jnp.float32)
        x = jnp.take_along_axis(x, source[..., None], axis=1)
        normal = nn.initializers.normal(self.embedding_std)
        shape = (1, self.places, self.width)
        positions = self.param("decoder_pos_embed_learned", normal, shape)
        x = x + positions
        blocks = vit.Stack("decoder_blocks", self.depth, self.num_heads, self.dtype, self.remat, self.scan)
        x = nn.LayerNorm(epsilon=1e-6, name="decoder_norm")(blocks(self, x))
        return TokenHead(self.dtype, name="mlm_layer")(x, words, count)


def random_masking(
    noise: jax.Array, num_drop: int, num_mask: int | jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Which tokens the encoder sees, and which of its outputs the decoder finds at each place.

    Args:
      noise: `[batch, token]`: the tokens of least noise are dropped, the next ones masked.
      num_drop: how many tokens the encoder does not get to see; a number, as it sets shapes.
      num_mask: how many are masked, the dropped ones included; at least `num_drop`.

    Returns:
      `masked`, bool `[batch, token]`; `positions` `[batch, 1 + kept]`, ascending, among all places,
      of which the class token has the first; `source` `[batch, 1 + token]`, indices into the
      encoder's output, 0 (the class token) where masked.
    """
    order = jnp.argsort(noise, axis=1)
    rank = jnp.argsort(order, axis=1)
    masked = rank < num_mask
    positions = jnp.pad(jnp.sort(order[:, num_drop:], axis=1) + 1, ((0, 0), (1, 0)))
    index = jnp.cumsum(rank >= num_drop, axis=1)
    return masked, positions, jnp.pad(jnp.where(masked, 0, index), ((0, 0), (1, 0)))


def draw_masked_share(rng: jax.Array, mean: float, std: float, least: float) -> jax.Array:
    """A scalar from N(mean, std) truncated to [least, 1]."""
    lower, upper = ((end - mean) / std for end in (least, 1.0))
    return mean + std * jax.random.truncated_normal(rng, lower, upper)


def draw_noise_codes(
    rng: jax.Array, codes: jax.Array, codebook_size: int, axis_name: str | None = None
) -> jax.Array:
    """Codes that say nothing of an image: numbers from a normal distribution with the mean and
    (unbiased) standard deviation of all `codes` of the batch, rounded and clipped to the codebook.

    Args:
      rng: key.
      codes: `[batch, token]`; the result is like it.
      codebook_size: number of codes.
      axis_name: mapped axis over which the batch is split.
    """
    mean, std = mean_and_std(codes.astype(jnp.float32), axis_name)
    rows, tokens = codes.shape
    normal = draw_rows(lambda n: jax.random.normal(rng, (n, tokens)), rows, axis_name)
    return jnp.clip(jnp.round(mean + std * normal), 0, codebook_size - 1).astype(codes.dtype)


def unused_tensors(width: int, decoder_width: int, patch_size: int, channels: int) -> Any:
    """Zeros in the shapes of the release's tensors that no result depends on."""
    patch_dim = patch_size**2 * channels
    return {
        "cls_token": jnp.zeros((1, 1, width)),
        "mask_token": jnp.zeros((1, 1, decoder_width)),
        "patch_embed": {
            "kernel": jnp.zeros((patch_size, patch_size, channels, width)),
            "bias": jnp.zeros((width,)),
        },
        "decoder_pred": {
            "kernel": jnp.zeros((decoder_width, patch_dim)),
            "bias": jnp.zeros((patch_dim,)),
        },
    }
