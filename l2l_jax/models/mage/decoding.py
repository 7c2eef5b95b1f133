"""Inpainting with MAGE: iterative decoding of masked tokens, and blending of the decoded image.

Decoding follows MaskGIT (Chang et al. 2022): each step samples all hidden tokens at once and masks the least
confident ones again, fewer at every step. The hidden tokens are known before compilation, so the schedule is
a constant of the compiled loop.
"""

from __future__ import annotations  # jaxtyping is not needed at run time

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from l2l_jax import masks

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    Mask = Bool[np.ndarray, "height width"]
    Ids = Int[Array, "batch token"]
    Logits = Float[Array, "batch token code"]


class Schedule(NamedTuple):
    """Number of tokens to mask again after each step, and temperature of the confidence noise."""

    mask_lengths: Int[np.ndarray, " step"]
    temperatures: Float[np.ndarray, " step"]


class Step(NamedTuple):
    """Result of one step of decoding."""

    sampled: Ids  # all tokens, with samples for the hidden ones
    # Log-probability of the sampled token plus noise; infinite for visible tokens
    confidence: Float[Array, "batch token"]
    ids: Ids  # `sampled` with the least confident tokens masked again


def hidden_tokens(mask: Mask, patch_size: int, margin: int) -> Bool[np.ndarray, " token"]:
    """Return the tokens to decode: tokens with a missing pixel, dilated by `margin` tokens.

    The released code rounds a mask that ends inside a token down at its lower and right edges, and therefore
    dilates it less there. The two agree on masks that are aligned with the tokens.
    """
    rows, columns = mask.shape[0] // patch_size, mask.shape[1] // patch_size
    touched = mask.reshape(rows, patch_size, columns, patch_size).any(axis=(1, 3))
    return masks.grow(touched, margin).reshape(-1)


def blend_weights(mask: Mask, margin: int, sigma: float) -> Float[np.ndarray, "height width"]:
    """Return the blending weight of the decoded image, in [0, 1].

    The weight is the mask, dilated by `margin` pixels in all eight directions, then blurred by a Gaussian
    with a standard deviation of `sigma` pixels.
    """
    from scipy import ndimage  # slow to import

    grown = masks.grow(mask, margin).astype(np.float64)
    return ndimage.gaussian_filter(grown, sigma, mode="nearest").astype(np.float32)


def decoding_schedule(tokens: int, hidden: int, steps: int, choice_temperature: float) -> Schedule:
    """Return the cosine schedule of the released code for `hidden` masked tokens out of `tokens`.

    After step i of `steps`, the fraction cos(π/2 · (i + 1) / steps) of all tokens stays masked, rounded down,
    but at least one token and at least one fewer than before. Steps that would mask a larger fraction than is
    hidden are skipped. The noise decreases linearly.
    """
    done = np.arange(1, steps + 1) / steps
    share = np.cos(np.pi / 2 * done)
    carried_out = share < hidden / tokens
    lengths = []
    for length in np.floor(tokens * share[carried_out]).astype(int):
        hidden = max(1, min(hidden - 1, int(length)))
        lengths.append(hidden)
    temperatures = choice_temperature * (1 - done[carried_out])
    return Schedule(np.array(lengths, np.int32), temperatures.astype(np.float32))


def decoding_step(
    logits: Logits,
    ids: Ids,
    mask_id: int,
    mask_length: Int[Array, ""],
    id_noise: Logits,
    confidence_noise: Float[Array, "batch token"],
) -> Step:
    """Sample the tokens that are `mask_id` in `ids`, and mask the `mask_length` least confident ones again.

    Gumbel noise as `id_noise` samples from the softmax; zeros select the most likely code. `confidence_noise`
    is added to the log-probability of the sampled code.
    """
    unknown = ids == mask_id
    drawn = jnp.argmax(logits + id_noise, axis=-1).astype(ids.dtype)
    log_probability = jnp.take_along_axis(jax.nn.log_softmax(logits), drawn[..., None], axis=-1)
    confidence = jnp.where(unknown, log_probability[..., 0] + confidence_noise, jnp.inf)
    sampled = jnp.where(unknown, drawn, ids)
    rank = jnp.argsort(jnp.argsort(confidence, axis=1), axis=1)
    return Step(sampled, confidence, jnp.where(rank < mask_length, mask_id, sampled))


def decode_masked(
    logits_of: Callable[[Ids], Logits],
    ids: Ids,
    mask_id: int,
    schedule: Schedule,
    rng: Array,
    sampling_temperature: float = 1.0,
) -> Ids:
    """Run all steps of the schedule in one compiled loop; if it has any step, no token stays masked.

    Tokens that are `mask_id` in `ids` are sampled from the softmax of `logits_of(ids)` with the temperature
    `sampling_temperature`.
    """

    def body(carry, step):
        ids, _ = carry
        index, mask_length, temperature = step
        id_key, confidence_key = jax.random.split(jax.random.fold_in(rng, index))
        logits = logits_of(ids)
        id_noise = sampling_temperature * jax.random.gumbel(id_key, logits.shape)
        confidence_noise = temperature * jax.random.gumbel(confidence_key, ids.shape)
        done = decoding_step(logits, ids, mask_id, mask_length, id_noise, confidence_noise)
        return (done.ids, done.sampled), None

    steps = (np.arange(len(schedule.mask_lengths)), *map(jnp.asarray, schedule))
    (_, sampled), _ = jax.lax.scan(body, (ids, ids), steps)
    return sampled
