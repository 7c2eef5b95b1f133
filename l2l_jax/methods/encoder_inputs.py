"""The paper's objective: unlearn by retraining the encoder alone (Li et al. 2024, equation 12).

    min_θ  E‖E_θ(T(x_r)) − E_0(T(x_r))‖²  +  α · E‖E_θ(T(x_f)) − E_0(T(n))‖²

E_0 is the frozen original encoder (the teacher), x_r and x_f retain and forget images, n noise, T
the corruption that the model is made to undo. Nothing here knows of any model: encoders are
functions, and everything works under `jit`, `grad`, `pmap` and `shard_map`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from l2l_jax.losses import unlearning_loss
from l2l_jax.methods.noise import NoiseKind, noise_images

Encode = Callable[[Any, Any], Any]
"""`(params, seen) -> features`: pytrees of arrays that start with the batch axis."""


class UnlearningInputs(NamedTuple):
    """What student and teacher see; trees of equal structure, leaves `[batch, …]`.

    Attributes:
      retain: T(x_r), for both.
      forget: T(x_f), for the student.
      noise: T(n), for the teacher, with the T of `forget`.
    """

    retain: Any
    forget: Any
    noise: Any


def unlearning_inputs(
    corrupt: Callable[[jax.Array, jax.Array], Any],
    retain: jax.Array,
    forget: jax.Array,
    rng: jax.Array,
    *,
    noise: NoiseKind = "normal",
    value_range: tuple[float, float] = (0.0, 1.0),
    axis_name: str | None = None,
) -> UnlearningInputs:
    """Draw the noise and corrupt everything; forget images and noise get the same draw of T.

    Args:
      corrupt: T, `(images, rng) -> seen`; equal keys must give equal draws.
      retain, forget: images `[batch, height, width, channel]`, equally many.
      rng: key.
      noise, value_range, axis_name: see `noise_images`. The statistics of the noise are those of
        the whole batch, retain and forget images together. Under `axis_name` the key that
        `corrupt` gets has the device's index folded in, so that rows differ.

    Raises:
      ValueError: shapes differ.
    """
    noise_image = batch_noise(retain, forget, rng, kind=noise, value_range=value_range, axis_name=axis_name)
    if axis_name is not None:  # `corrupt` knows nothing of the other devices' rows
        rng = jax.random.fold_in(rng, jax.lax.axis_index(axis_name))
    retain_key, forget_key = corruption_keys(rng)
    return UnlearningInputs(
        retain=corrupt(retain, retain_key),
        forget=corrupt(forget, forget_key),
        noise=corrupt(noise_image, forget_key),
    )


def batch_noise(
    retain: jax.Array,
    forget: jax.Array,
    rng: jax.Array,
    *,
    kind: NoiseKind = "normal",
    value_range: tuple[float, float] = (0.0, 1.0),
    axis_name: str | None = None,
) -> jax.Array:
    """`noise_images` in the shape of `forget` with the statistics of both halves of the batch."""
    if retain.shape != forget.shape:
        raise ValueError(
            f"retain and forget batches must have one shape, not {retain.shape} and {forget.shape}"
        )
    both = jnp.stack([retain, forget], axis=1)  # a new axis: no device gives its rows away
    noise_key = jax.random.fold_in(rng, 2)
    drawn = noise_images(both, noise_key, kind, value_range=value_range, axis_name=axis_name)
    return drawn[:, 1]


def corruption_keys(rng: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The keys of T for retain and for forget images."""
    return jax.random.fold_in(rng, 0), jax.random.fold_in(rng, 1)


def encoder_unlearning_loss(
    encode: Encode,
    student: Any,
    teacher: Any,
    inputs: UnlearningInputs,
    *,
    alpha: float | jax.Array = 0.25,
    axis_name: str | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The paper's loss of an encoder and its terms: `unlearning_loss` of its features.

    The student runs once over retain and forget inputs, the teacher once over retain and noise
    inputs; the two halves are interleaved, so that a sharded batch stays where it is.

    Args:
      encode: the encoder as a function of its parameters.
      student: parameters to differentiate; `teacher`: the original ones, never differentiated.
      inputs: what they see, from `unlearning_inputs`.
      alpha: weight of the forget term: 0.25 in the paper, 0 distils the retain set only.
      axis_name: mapped axis over which the batch is split; the results are then global means.
        Average the gradients over it as well (see `objectives/losses.py`).

    Returns:
      The scalar `retain + alpha · forget`, and `{"retain", "forget"}`, the two means over the batch
      of `feature_distance`.

    Raises:
      TypeError: features that are not floating point.
      ValueError: inputs of different shapes.
    """
    _check_alike(inputs)
    student_retain, student_forget = deinterleave(encode(student, interleave(inputs.retain, inputs.forget)))
    teacher_retain, teacher_noise = deinterleave(encode(teacher, interleave(inputs.retain, inputs.noise)))
    return unlearning_loss(
        student_retain,
        teacher_retain,
        student_forget,
        teacher_noise,
        alpha=alpha,
        axis_name=axis_name,
    )


def interleave(first: Any, second: Any) -> Any:
    """Trees of `[batch, …]` → `[2 · batch, …]` with the rows of the two alternating.

    A batch sharded along its first axis stays where it is, unlike one concatenated along it.
    """

    def leaf(a, b):
        return jnp.stack([a, b], axis=1).reshape(2 * a.shape[0], *a.shape[1:])

    return jax.tree.map(leaf, first, second)


def deinterleave(both: Any) -> tuple[Any, Any]:
    """The inverse of `interleave`: the rows with even and those with odd numbers."""

    def rows(first):
        return jax.tree.map(lambda x: x.reshape(-1, 2, *x.shape[1:])[:, first], both)

    return rows(0), rows(1)


def _check_alike(inputs: UnlearningInputs) -> None:
    shapes = [jax.tree.map(jnp.shape, part) for part in inputs]
    if not shapes[0] == shapes[1] == shapes[2]:
        raise ValueError(
            "retain, forget and noise inputs must have one structure and shape, not "
            + ", ".join(map(str, shapes))
        )
