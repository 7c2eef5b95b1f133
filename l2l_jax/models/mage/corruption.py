"""What MAGE is shown in training: images as codes, some of them dropped or masked.

Codes see far: group normalisation is over the whole image and the convolutions overlap, so that the
codes beside a mask change with what is painted into it. The release trains on codes of whole images
and restores from codes of painted ones. Published tokenizers bear that: theirs are 256 codes of 16
pixels a side. On small images it changes most codes; `MAGE.paint_masked` trains for it.
"""

import math

import jax
import jax.numpy as jnp

from l2l_jax.models.mage.networks import draw_masked_share, random_masking
from l2l_jax.models.mage.settings import MAGESettings
from l2l_jax.utils.batch_axis import draw_rows


def paint(settings: MAGESettings, images: jax.Array, mask: jax.Array) -> jax.Array:
    """Images with the pixels of `mask`, bool `[batch or 1, height, width]`, in `hole_color`."""
    color = jnp.asarray(settings.hole_color, images.dtype).reshape(1, 1, 1, -1)
    return jnp.where(mask[..., None], color, images)


def paint_tokens(settings: MAGESettings, images: jax.Array, tokens: jax.Array) -> jax.Array:
    """Images with the squares of `tokens`, bool `[batch, token]`, in `hole_color`."""
    mask = tokens.reshape(-1, settings.grid, settings.grid)
    mask = mask.repeat(settings.patch_size, axis=1).repeat(settings.patch_size, axis=2)
    return paint(settings, images, mask)


def draw_mask(
    settings: MAGESettings, rows: int, rng: jax.Array, axis_name: str | None = None
) -> tuple[jax.Array, int, jax.Array]:
    """The arguments of `random_masking` for a batch: noise, how many tokens to drop, and to mask."""
    noise_key, share_key = jax.random.split(rng)
    num_drop = math.ceil(settings.tokens * settings.dropped)
    share = draw_masked_share(share_key, settings.mask_mean, settings.mask_std, settings.dropped)
    num_mask = jnp.ceil(settings.tokens * share).astype(jnp.int32)
    noise = draw_rows(lambda n: jax.random.uniform(noise_key, (n, settings.tokens)), rows, axis_name)
    return noise, num_drop, jnp.clip(num_mask, max(num_drop, 1), settings.tokens)


def tokenizer_inputs(
    settings: MAGESettings, images: jax.Array, rng: jax.Array, axis_name: str | None = None
) -> tuple[jax.Array, ...]:
    """What `VQGAN` is called with in training.

    Returns:
      `(images,)`, or with `paint_masked` also the images with some squares painted, and which
      tokens these are, bool `[batch, rows, columns]`.
    """
    if not settings.paint_masked:
        return (images,)
    noise, _, num_mask = draw_mask(settings, images.shape[0], rng, axis_name)
    masked, _, _ = random_masking(noise, 0, num_mask)
    painted = paint_tokens(settings, images, masked)
    return images, painted, masked.reshape(-1, settings.grid, settings.grid)
