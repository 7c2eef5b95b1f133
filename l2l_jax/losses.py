"""Unlearning losses on features, outputs and losses: plain functions of arrays, for any framework.

    retain term + α · forget term

Nothing here knows how the arrays were made. A term is a mean over the examples of its own set, and the two
sets may differ in size. Everything is computed in float32 and works under `jit`, `grad`, `pmap` and
`shard_map`, the latter with and without its checks.

Under `pmap` and `shard_map` pass `axis_name`: losses and terms are then means over the global batch.
Average the gradients over the same axis with `jax.lax.pmean`. (With its default checks, `shard_map` has
done so already for parameters that are the same on all devices; a second average changes nothing.)

Source: Li et al., Machine Unlearning for Image-to-Image Generative Models, ICLR 2024.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

Terms = dict[str, jax.Array]
"""`{"retain", "forget"}`: the two terms, before the forget term is weighted."""

Where = tuple[jax.Array | None, jax.Array | None]
"""Which entries count, for the retain set and for the forget set; None: all."""


def unlearning_loss(
    student_retain: Any,
    teacher_retain: Any,
    student_forget: Any,
    teacher_noise: Any,
    *,
    alpha: float | jax.Array = 0.25,
    where: Where | None = None,
    per_example: bool = False,
    axis_name: str | None = None,
) -> tuple[jax.Array, Terms]:
    """The paper's loss on encoder features (Li et al. 2024, equation 12).

        mean ‖E(T(x_r)) − E_0(T(x_r))‖²  +  α · mean ‖E(T(x_f)) − E_0(T(n))‖²

    The teacher's features are not differentiated. For each set, student and teacher must have seen
    the same draw of T.

    Args:
      student_retain: E(T(x_r)), an array `[retain, …]` or a tree of such arrays, floating point.
      teacher_retain: E_0(T(x_r)), of the same structure and shapes.
      student_forget: E(T(x_f)), `[forget, …]`.
      teacher_noise: E_0(T(n)), of the same structure and shapes as `student_forget`.
      alpha: weight of the forget term: 0.25 in the paper; 0 distils the retain set only.
      where: a pair of boolean masks, for the retain and the forget set: `[batch]` for the examples that
        count, or more of the features' first axes, such as `[batch, token]`. See `feature_distance`.
      per_example: return the terms as arrays `[retain]` and `[forget]` instead of as their means.
      axis_name: mapped axis over which the batches are split.

    Returns:
      The scalar `retain + alpha · forget`, and the terms.

    Raises:
      TypeError: features that are not floating point, or masks that are not boolean.
      ValueError: trees or shapes that do not match.
    """
    _check_floating(
        student_retain=student_retain,
        teacher_retain=teacher_retain,
        student_forget=student_forget,
        teacher_noise=teacher_noise,
    )
    masks = (None, None) if where is None else where
    retain = feature_distance(student_retain, jax.lax.stop_gradient(teacher_retain), where=masks[0])
    forget = feature_distance(student_forget, jax.lax.stop_gradient(teacher_noise), where=masks[1])
    counted = (_examples(masks[0]), _examples(masks[1]))
    return _weighted_sum(retain, forget, alpha, counted, per_example, axis_name)


def max_loss(
    retain_losses: jax.Array,
    forget_losses: jax.Array,
    *,
    alpha: float | jax.Array,
    where: Where | None = None,
    per_example: bool = False,
    axis_name: str | None = None,
) -> tuple[jax.Array, Terms]:
    """Raise the model's own training loss L on forget images: mean L(x_r) − α · mean L(x_f).

    Not bounded below: with a large alpha or many steps it diverges.

    Args:
      retain_losses: L of every retain image, `[retain]`, floating point.
      forget_losses: L of every forget image, `[forget]`.
      alpha: weight of the forget term, 0 or more.
      where, per_example, axis_name: as for `unlearning_loss`; masks are `[batch]`.

    Returns:
      The scalar `retain − alpha · forget`, and the terms.

    Raises:
      TypeError: losses that are not floating point.
      ValueError: losses that are not one number an example.
    """
    _check_losses(retain_losses, forget_losses)
    return _weighted_sum(retain_losses, forget_losses, -alpha, where or (None, None), per_example, axis_name)


def noisy_label_loss(
    retain_losses: jax.Array,
    forget_losses: jax.Array,
    *,
    alpha: float | jax.Array,
    where: Where | None = None,
    per_example: bool = False,
    axis_name: str | None = None,
) -> tuple[jax.Array, Terms]:
    """Train forget images towards noise: mean L(x_r) + α · mean L(x_f, with noise as the truth).

    Args:
      retain_losses: L of every retain image, `[retain]`, floating point.
      forget_losses: L of every forget image, `[forget]`, computed with Gaussian noise, such as that of
        `noise_images`, in place of the image that the model should restore.
      alpha: weight of the forget term, 0 or more.
      where, per_example, axis_name: as for `unlearning_loss`; masks are `[batch]`.

    Returns:
      The scalar `retain + alpha · forget`, and the terms.

    Raises:
      TypeError: losses that are not floating point.
      ValueError: losses that are not one number an example.
    """
    _check_losses(retain_losses, forget_losses)
    return _weighted_sum(retain_losses, forget_losses, alpha, where or (None, None), per_example, axis_name)


def retain_label_loss(
    student_retain: Any,
    teacher_retain: Any,
    student_forget: Any,
    *,
    alpha: float | jax.Array,
    where: Where | None = None,
    per_example: bool = False,
    axis_name: str | None = None,
) -> tuple[jax.Array, Terms]:
    """Make retain images the truth of forget images, in the outputs of the whole model h.

        mean ‖h(T(x_r)) − h_0(T(x_r))‖²  +  α · mean ‖h(T(x_f)) − h_0(T(x_r))‖²

    Forget image i is paired with retain image i, counted in a circle if there are fewer of those.

    Args:
      student_retain: h(T(x_r)), an array `[retain, …]` or a tree of such arrays, floating point.
      teacher_retain: h_0(T(x_r)) of the original model, of the same structure and shapes.
      student_forget: h(T(x_f)), `[forget, …]`.
      alpha, where, per_example, axis_name: as for `unlearning_loss`.

    Returns, Raises: as `unlearning_loss`.
    """
    rows = len(jax.tree.leaves(student_forget)[0])

    def paired(x):
        return x if len(x) == rows else jnp.asarray(x)[jnp.arange(rows) % len(x)]

    return unlearning_loss(
        student_retain,
        teacher_retain,
        student_forget,
        jax.tree.map(paired, teacher_retain),
        alpha=alpha,
        where=where,
        per_example=per_example,
        axis_name=axis_name,
    )


def random_encoder_loss(
    student_retain: Any,
    teacher_retain: Any,
    student_forget: Any,
    noise: Any,
    *,
    alpha: float | jax.Array,
    where: Where | None = None,
    per_example: bool = False,
    axis_name: str | None = None,
) -> tuple[jax.Array, Terms]:
    """Send the features of forget images to Gaussian noise.

        mean ‖E(T(x_r)) − E_0(T(x_r))‖²  +  α · mean ‖E(T(x_f)) − n‖²

    Args:
      student_retain: E(T(x_r)), an array `[retain, …]` or a tree of such arrays, floating point.
      teacher_retain: E_0(T(x_r)), of the same structure and shapes.
      student_forget: E(T(x_f)), `[forget, …]`.
      noise: n, of the same structure and shapes as `student_forget`: `noise_features` draws it with the mean
        and standard deviation of the original features.
      alpha, where, per_example, axis_name: as for `unlearning_loss`.

    Returns, Raises: as `unlearning_loss`.
    """
    return unlearning_loss(
        student_retain,
        teacher_retain,
        student_forget,
        noise,
        alpha=alpha,
        where=where,
        per_example=per_example,
        axis_name=axis_name,
    )


def feature_distance(features: Any, target: Any, *, where: jax.Array | None = None) -> jax.Array:
    """‖features − target‖² of every example, `[batch]`, float32.

    The mean over all axes but the batch's; summed over the leaves, if the features are several
    arrays (the feature maps of a U-Net).

    Args:
      features, target: trees of arrays `[batch, …]` of equal structure and shapes.
      where: boolean mask with the first axes of every leaf, such as `[batch]` or `[batch, token]`. The mean
        is over the entries where it is true, and 0 for an example that has none.

    Raises:
      TypeError: a mask that is not boolean.
      ValueError: the two trees differ in structure or shape, or the mask does not fit them.
    """
    structures: list[Any] = [jax.tree.structure(tree) for tree in (features, target)]
    if structures[0] != structures[1]:
        raise ValueError("features and target are trees of different structure")

    def distance(x, y):
        if x.shape != y.shape:
            raise ValueError(f"features have shape {x.shape}, their target {y.shape}")
        difference = x.astype(jnp.float32) - y.astype(jnp.float32)
        if where is None:
            return jnp.square(difference).reshape(x.shape[0], -1).mean(axis=1)
        mask = jnp.broadcast_to(_fitted(where, x.shape), x.shape).reshape(x.shape[0], -1)
        # Masked before squaring: what is masked may be infinite and must not reach the gradient.
        square = jnp.square(jnp.where(mask, difference.reshape(mask.shape), 0))
        return square.sum(axis=1) / jnp.maximum(mask.sum(axis=1), 1)

    return functools.reduce(jnp.add, jax.tree.leaves(jax.tree.map(distance, features, target)))


def _examples(where: jax.Array | None) -> jax.Array | None:
    """The examples `[batch]` of which a mask lets anything count."""
    return None if where is None else where.reshape(where.shape[0], -1).any(axis=1)


def _fitted(where: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A mask of the first axes with axes of size 1 for the others."""
    if where.dtype != jnp.bool_:
        raise TypeError(f"where must be boolean, not {where.dtype}")
    if where.ndim == 0 or where.shape != shape[: where.ndim]:
        raise ValueError(f"where has shape {where.shape}: not the first axes of features {shape}")
    return where.reshape(*where.shape, *[1] * (len(shape) - where.ndim))


def _weighted_sum(
    retain: jax.Array,
    forget: jax.Array,
    weight: float | jax.Array,
    where: Where,
    per_example: bool,
    axis_name: str | None,
) -> tuple[jax.Array, Terms]:
    """Losses of examples → mean retain + weight · mean forget, and the terms."""
    means = [_mean(losses, mask, axis_name) for losses, mask in zip((retain, forget), where, strict=True)]
    loss = means[0] + weight * means[1]
    terms = (retain, forget) if per_example else means
    return loss, {"retain": terms[0], "forget": terms[1]}


def _mean(losses: jax.Array, where: jax.Array | None, axis_name: str | None) -> jax.Array:
    """The mean of `[batch]` over the examples that count, of all devices."""
    losses = losses.astype(jnp.float32)
    if where is None:
        mean = losses.mean()
        return mean if axis_name is None else jax.lax.pmean(mean, axis_name)
    total, count = jnp.where(_fitted(where, losses.shape), losses, 0).sum(), where.sum()
    if axis_name is not None:  # devices may have different counts
        total, count = jax.lax.psum(total, axis_name), jax.lax.psum(count, axis_name)
    return total / jnp.maximum(count, 1)


def _check_floating(**trees: Any) -> None:
    for name, tree in trees.items():
        for x in jax.tree.leaves(tree):
            if not jnp.issubdtype(x.dtype, jnp.floating):
                raise TypeError(
                    f"{name} has type {x.dtype}; a loss needs floating-point arrays. "
                    "Convert it first, images to their value range."
                )


def _check_losses(retain_losses: jax.Array, forget_losses: jax.Array) -> None:
    _check_floating(retain_losses=retain_losses, forget_losses=forget_losses)
    for name, losses in (("retain_losses", retain_losses), ("forget_losses", forget_losses)):
        if losses.ndim != 1:
            raise ValueError(f"{name} must be one number an example, [batch], not {losses.shape}")
