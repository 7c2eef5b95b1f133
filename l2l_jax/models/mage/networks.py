"""Networks of MAGE from tokens to logits, and its random sampling; names follow the released code."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from l2l_jax.models.layers import vit
from l2l_jax.utils.batch_axis import draw_rows, mean_and_std

EMBEDDING_STD = 0.02  # initial standard deviation of embeddings in the released code


class TokenEmbedding(nn.Module):
    """Layer-normalized sum of word embedding and learned position embedding."""

    vocabulary: int
    places: int
    width: int
    embedding_std: float = EMBEDDING_STD

    @nn.compact
    def __call__(self, ids: Array, positions: Array) -> Array:
        """Map `ids` and `positions`, `[batch, token]` each, to `[batch, token, width]`, float32."""
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
    blocks: vit.Stack
    dropout: float
    embedding_std: float = EMBEDDING_STD

    @nn.compact
    def __call__(self, ids: Array, positions: Array, dropout_keep: Array | None = None) -> Array:
        """Map tokens `[batch, 1 + kept]`, class token first, to features `[batch, 1 + kept, width]`, float32.

        `dropout_keep`, bool in the shape of the features, is True for embedding channels that dropout keeps.
        """
        embed = TokenEmbedding(self.vocabulary, self.places, self.width, self.embedding_std, name="token_emb")
        x = embed(ids, positions)
        if dropout_keep is not None:
            x = jnp.where(dropout_keep, x / (1 - self.dropout), 0)
        return nn.LayerNorm(epsilon=1e-6, name="norm")(self.blocks(self, x))


class TokenHead(nn.Module):
    """Vocabulary logits, computed as similarity to given word embeddings."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, words: Array, count: int | None = None) -> Array:
        """Map `[batch, token, decoder width]`, `[vocabulary, width]` to logits `[batch, token, word]`."""
        vocabulary, width = words.shape
        x = nn.Dense(width, dtype=self.dtype, kernel_init=vit.xavier, name="fc")(x)
        x = nn.gelu(x.astype(jnp.float32), approximate=False)
        x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="ln")(x)
        bias = self.param("bias", nn.initializers.zeros, (1, 1, vocabulary))
        words = words[:count].astype(self.dtype)
        return jnp.einsum("btw,vw->btv", x, words, preferred_element_type=jnp.float32) + bias[..., :count]


class Decoder(nn.Module):
    """ViT over all positions; masked positions hold the encoded class token."""

    places: int
    width: int
    blocks: vit.Stack
    embedding_std: float = EMBEDDING_STD

    @nn.compact
    def __call__(self, latent: Array, source: Array, words: Array, count: int | None = None) -> Array:
        """Return float32 logits `[batch, places, vocabulary]`, or those of the first `count` words.

        `source`, `[batch, places]`, is the index of the encoded token in `latent` for each position; `words`
        are the word embeddings.
        """
        embed = nn.Dense(self.width, dtype=self.blocks.dtype, kernel_init=vit.xavier, name="decoder_embed")
        x = embed(latent).astype(jnp.float32)
        x = jnp.take_along_axis(x, source[..., None], axis=1)
        normal = nn.initializers.normal(self.embedding_std)
        x = x + self.param("decoder_pos_embed_learned", normal, (1, self.places, self.width))
        x = nn.LayerNorm(epsilon=1e-6, name="decoder_norm")(self.blocks(self, x))
        return TokenHead(self.blocks.dtype, name="mlm_layer")(x, words, count)


def random_masking(noise: Array, num_drop: int, num_mask: int | Array) -> tuple[Array, Array, Array]:
    """Choose the tokens that the encoder receives, and the encoder output for each decoder position.

    The `num_drop` tokens with the smallest `noise` `[batch, token]` are dropped. The `num_mask` tokens with
    the smallest noise, which include the dropped ones, are masked.

    Returns:
      `masked`, bool `[batch, token]`; `positions` `[batch, 1 + kept]`, ascending indices of the kept tokens,
      with the class token at 0; `source` `[batch, 1 + token]`, indices into the encoder's output, 0 (the
      class token) where masked.
    """
    order = jnp.argsort(noise, axis=1)
    rank = jnp.argsort(order, axis=1)
    masked = rank < num_mask
    positions = jnp.pad(jnp.sort(order[:, num_drop:], axis=1) + 1, ((0, 0), (1, 0)))
    index = jnp.cumsum(rank >= num_drop, axis=1)
    return masked, positions, jnp.pad(jnp.where(masked, 0, index), ((0, 0), (1, 0)))


def draw_noise_codes(rng: Array, codes: Array, codebook_size: int, axis_name: str | None = None) -> Array:
    """Sample codes from a normal distribution with the mean and (unbiased) standard deviation of `codes`."""
    mean, std = mean_and_std(codes.astype(jnp.float32), axis_name)
    rows, tokens = codes.shape
    normal = draw_rows(lambda n: jax.random.normal(rng, (n, tokens)), rows, axis_name)
    return jnp.clip(jnp.round(mean + std * normal), 0, codebook_size - 1).astype(codes.dtype)


def unused_tensors(width: int, decoder_width: int, patch_size: int, channels: int) -> Any:
    """Return zeros in the shapes of those tensors of the released state dict that no result depends on."""
    patch = (patch_size, patch_size, channels)
    pixels = math.prod(patch)
    return {
        "cls_token": jnp.zeros((1, 1, width)),
        "mask_token": jnp.zeros((1, 1, decoder_width)),
        "patch_embed": {"kernel": jnp.zeros((*patch, width)), "bias": jnp.zeros(width)},
        "decoder_pred": {"kernel": jnp.zeros((decoder_width, pixels)), "bias": jnp.zeros(pixels)},
    }
