"""What MAGE is shown in training: images as codes, some of them dropped or masked.

Codes see far: group normalisation is over the whole image and the convolutions overlap, so that the
codes beside a hole change with what is painted into it. The release trains on codes of whole images
and restores from codes of painted ones. Published tokenizers bear that: theirs are 256 codes of 16
pixels a side. On small images it changes most codes; `MAGE.paint_masked` trains for it.
"""

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from l2l_jax.models.base import Params
from l2l_jax.models.batch_axis import draw_rows
from l2l_jax.models.mage_networks import draw_masked_share, random_masking

if TYPE_CHECKING:
    from l2l_jax.models.mage import MAGE


def paint(model: "MAGE", images: jax.Array, hole: jax.Array) -> jax.Array:
    """Images with the pixels of `hole`, bool `[batch or 1, height, width]`, in `hole_color`."""
    color = jnp.asarray(model.hole_color, images.dtype).reshape(1, 1, 1, -1)
    return jnp.where(hole[..., None], color, images)


def paint_tokens(model: "MAGE", images: jax.Array, tokens: jax.Array) -> jax.Array:
    """Images with the squares of `tokens`, bool `[batch, token]`, in `hole_color`."""
    hole = tokens.reshape(-1, model.grid, model.grid)
    hole = hole.repeat(model.patch_size, axis=1).repeat(model.patch_size, axis=2)
    return paint(model, images, hole)


def draw_mask(
    model: "MAGE", rows: int, rng: jax.Array, axis_name: str | None = None
) -> tuple[jax.Array, int, jax.Array]:
    """The arguments of `random_masking` for a batch: noise, how many tokens to drop, and to mask."""
    noise_key, share_key = jax.random.split(rng)
    num_drop = math.ceil(model.tokens * model.dropped)
    share = draw_masked_share(share_key, model.mask_mean, model.mask_std, model.dropped)
    num_mask = jnp.ceil(model.tokens * share).astype(jnp.int32)
    noise = draw_rows(lambda n: jax.random.uniform(noise_key, (n, model.tokens)), rows, axis_name)
    return noise, num_drop, jnp.clip(num_mask, max(num_drop, 1), model.tokens)


def corrupt(
    model: "MAGE", params: Params, images: jax.Array, rng: jax.Array, axis_name: str | None = None
) -> dict[str, jax.Array]:
    """`MAGE.corrupt`: tokenise, drop a share `dropped` of the tokens, mask some of the others."""
    mask_key, dropout_key = jax.random.split(rng)
    drawn = draw_mask(model, images.shape[0], mask_key, axis_name)
    codes = images.astype(jnp.int32) if images.ndim == 2 else model.tokenize(params, images)
    seen = model.mask(codes, *drawn)
    if model.paint_masked:
        painted = paint_tokens(model, images, seen["masked"])
        seen["ids"] = model.mask(model.tokenize(params, painted), *drawn)["ids"]
    if model.dropout:
        shape, keep = (seen["ids"].shape[1], model.width), 1 - model.dropout
        seen["dropout_keep"] = draw_rows(
            lambda n: jax.random.bernoulli(dropout_key, keep, (n, *shape)), len(images), axis_name
        )
    return seen


def tokenizer_inputs(
    model: "MAGE", images: jax.Array, rng: jax.Array, axis_name: str | None = None
) -> tuple[jax.Array, ...]:
    """What `VQGAN` is called with in training.

    Returns:
      `(images,)`, or with `paint_masked` also the images with some squares painted, and which
      tokens these are, bool `[batch, rows, columns]`.
    """
    if not model.paint_masked:
        return (images,)
    noise, _, num_mask = draw_mask(model, images.shape[0], rng, axis_name)
    masked, _, _ = random_masking(noise, 0, num_mask)
    painted = paint_tokens(model, images, masked)
    return images, painted, masked.reshape(-1, model.grid, model.grid)
