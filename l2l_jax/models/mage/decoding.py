"""Inpainting with MAGE: iterative decoding of masked tokens, and blending the result in.

The order of decoding is that of MaskGIT (Chang et al. 2022): all hidden tokens are sampled at once, the least
certain are masked again, and fewer of them at every step. What a mask hides is known before anything runs, so
that the schedule is a constant of the compiled loop.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


class Schedule(NamedTuple):
    """The steps of decoding.

    Attributes:
      mask_lengths: int32 `[step]`, how many tokens are masked again after each step.
      temperatures: float32 `[step]`, of the noise on the certainty of a token.
    """

    mask_lengths: np.ndarray
    temperatures: np.ndarray


class Step(NamedTuple):
    """What one step of decoding gives.

    Attributes:
      sampled: int32 `[batch, token]`: all tokens, the hidden ones as drawn.
      confidence: float32 `[batch, token]`: log-probability of the drawn token plus noise; infinite where the
        token was known.
      ids: int32 `[batch, token]`: `sampled` with the least certain tokens masked again.
    """

    sampled: Array
    confidence: Array
    ids: Array


def hidden_tokens(mask: np.ndarray, patch_size: int, margin: int) -> np.ndarray:
    """Return the tokens to decode, bool `[token]`: those with a missing pixel, grown by `margin` tokens.

    The release rounds a mask that ends inside a token down on its lower and right side, and so grows it by
    less there. Both agree on masks that are aligned with the tokens.
    """
    from scipy import ndimage  # takes long to load

    rows, columns = mask.shape[0] // patch_size, mask.shape[1] // patch_size
    touched = mask.reshape(rows, patch_size, columns, patch_size).any(axis=(1, 3))
    return ndimage.maximum_filter(touched, size=2 * margin + 1).reshape(-1)


def blend_weights(mask: np.ndarray, margin: int, sigma: float) -> np.ndarray:
    """Return the weight of the decoded image, float32 `[height, width]` in [0, 1].

    Args:
      mask: bool `[height, width]`, True where pixels are missing.
      margin: Pixels by which the mask grows in all eight directions.
      sigma: Standard deviation in pixels of the Gaussian blur after that; 0 is none.
    """
    from scipy import ndimage

    grown = ndimage.maximum_filter(mask, size=2 * margin + 1).astype(np.float64)
    return ndimage.gaussian_filter(grown, sigma, mode="nearest").astype(np.float32)


def decoding_schedule(tokens: int, hidden: int, steps: int, choice_temperature: float) -> Schedule:
    """Return the cosine schedule of the release for `hidden` of `tokens` masked tokens.

    After step i of `steps` the share cos(π/2 · (i + 1) / steps) of all tokens stays masked, rounded down; at
    least one token, and at least one fewer than before. Steps that would leave a greater share than the
    hidden one are left out. The noise fades linearly.
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
    logits: Array, ids: Array, mask_id: int, mask_length: Array, id_noise: Array, confidence_noise: Array
) -> Step:
    """Draw the masked tokens and mask the least certain again.

    Args:
      logits: `[batch, token, code]`.
      ids: int `[batch, token]`, `mask_id` where hidden.
      mask_id: The id that stands for a masked token.
      mask_length: integer scalar, how many tokens are masked again.
      id_noise: `[batch, token, code]`: Gumbel noise samples from the softmax, zeros take the most likely
        code.
      confidence_noise: `[batch, token]`: added to the log-probability of the drawn code.
    """
    unknown = ids == mask_id
    drawn = jnp.argmax(logits + id_noise, axis=-1).astype(ids.dtype)
    log_probability = jnp.take_along_axis(jax.nn.log_softmax(logits), drawn[..., None], axis=-1)
    confidence = jnp.where(unknown, log_probability[..., 0] + confidence_noise, jnp.inf)
    sampled = jnp.where(unknown, drawn, ids)
    rank = jnp.argsort(jnp.argsort(confidence, axis=1), axis=1)
    return Step(sampled, confidence, jnp.where(rank < mask_length, mask_id, sampled))


def decode_masked(
    logits_of: Callable[[Array], Array],
    ids: Array,
    mask_id: int,
    schedule: Schedule,
    rng: Array,
    sampling_temperature: float = 1.0,
) -> Array:
    """Run all steps of the schedule in one compiled loop.

    Args:
      logits_of: Token ids `[batch, token]` → logits `[batch, token, code]`.
      ids: int `[batch, token]`, `mask_id` where hidden.
      mask_id: The id that stands for a masked token.
      schedule: Result of `decoding_schedule`.
      rng: Key of the sampling.
      sampling_temperature: Temperature of the softmax that codes are drawn from.

    Returns:
      int `[batch, token]` without masked tokens, if the schedule has any steps.
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
