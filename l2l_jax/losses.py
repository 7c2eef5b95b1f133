"""Unlearning losses and noise: plain functions of arrays, for any framework.

    loss = retain term + α · forget term

Each term is the mean over the examples of its own set; the two sets may differ in size. Losses are computed
in float32 and work under `jit`, `grad`, `pmap` and `shard_map`, with and without its checks. Arguments other
than floating-point JAX or NumPy arrays, and integers instead of keys, raise a TypeError; mismatched trees or
shapes and invalid options raise a ValueError.

Under `pmap` and `shard_map`, pass `axis_name`: losses and terms are then means over the global batch. Average
the gradients over the same axis with `jax.lax.pmean`. (`shard_map` with its default checks already does so
for replicated parameters; a second average changes nothing.)

Source: Li et al., Machine Unlearning for Image-to-Image Generative Models, ICLR 2024.
"""

from __future__ import annotations  # jaxtyping is not needed at run time

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict, Unpack, get_args

import jax
import jax.numpy as jnp
import numpy as np

from l2l_jax.utils.batch_axis import deinterleave, draw_rows, interleave, mean_and_std

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Key, PyTree, Shaped

Terms = dict[str, jax.Array]
"""The two terms under "retain" and "forget", the forget term before weighting."""

Where = tuple[jax.Array | None, jax.Array | None]
"""Boolean masks of the entries to include, for the retain set and for the forget set; None: all."""

NoiseKind = Literal["normal", "uniform", "constant"]
NOISE_KINDS: tuple[str, ...] = get_args(NoiseKind)


class LossOptions(TypedDict, total=False):
    """Options of all losses.

    Attributes:
      where: Pair of boolean masks, for the retain and the forget set: `[batch]` for the examples to
        include, or, for features, more of their leading axes, such as `[batch, token]`; see
        `feature_distance`.
      per_example: Return the terms as arrays `[retain]` and `[forget]` instead of as means.
      axis_name: Mapped axis over which the batches are split.
    """

    where: Where | None
    per_example: bool
    axis_name: str | None


def unlearning_loss(
    student_retain: PyTree[Float[Array, "retain ..."]],
    teacher_retain: PyTree[Float[Array, "retain ..."]],
    student_forget: PyTree[Float[Array, "forget ..."]],
    teacher_noise: PyTree[Float[Array, "forget ..."]],
    *,
    alpha: float | Float[Array, ""] = 0.25,
    **options: Unpack[LossOptions],
) -> tuple[Float[Array, ""], Terms]:
    """Compute the paper's loss on encoder features (Li et al. 2024, equation 12).

        mean ‖E(T(x_r)) − E_0(T(x_r))‖²  +  α · mean ‖E(T(x_f)) − E_0(T(n))‖²

    The teacher's features are not differentiated. In each set, student and teacher must get the same draw
    of the corruption T.

    Args:
      student_retain: E(T(x_r)), an array or a tree of arrays.
      teacher_retain: E_0(T(x_r)), with the same structure and shapes.
      student_forget: E(T(x_f)).
      teacher_noise: E_0(T(n)), with the structure and shapes of `student_forget`.
      alpha: Weight of the forget term: 0.25 in the paper; 0 distills the retain set only.
      **options: See `LossOptions`.

    Returns:
      The scalar `retain + alpha · forget` and the two terms.
    """
    _check_floating(student_retain=student_retain, teacher_retain=teacher_retain)
    _check_floating(student_forget=student_forget, teacher_noise=teacher_noise)
    masks = options.get("where") or (None, None)
    retain = feature_distance(student_retain, jax.lax.stop_gradient(teacher_retain), where=masks[0])
    forget = feature_distance(student_forget, jax.lax.stop_gradient(teacher_noise), where=masks[1])
    rows = [None if mask is None else mask.reshape(len(mask), -1).any(axis=1) for mask in masks]
    return _weighted_sum(retain, forget, alpha, **options | {"where": (rows[0], rows[1])})


def max_loss(
    retain_losses: Float[Array, " retain"],
    forget_losses: Float[Array, " forget"],
    *,
    alpha: float | Float[Array, ""],
    **options: Unpack[LossOptions],
) -> tuple[Float[Array, ""], Terms]:
    """Raise the model's own training loss L on forget images: mean L(x_r) − α · mean L(x_f).

    `retain_losses` and `forget_losses` hold L of each image. Options and results are those of
    `unlearning_loss`. The loss has no lower bound: with a large alpha or many steps it diverges.
    """
    _check_losses(retain_losses=retain_losses, forget_losses=forget_losses)
    return _weighted_sum(retain_losses, forget_losses, -alpha, **options)


def noisy_label_loss(
    retain_losses: Float[Array, " retain"],
    forget_losses: Float[Array, " forget"],
    *,
    alpha: float | Float[Array, ""],
    **options: Unpack[LossOptions],
) -> tuple[Float[Array, ""], Terms]:
    """Train forget images toward noise: mean L(x_r) + α · mean L(x_f, with noise as the target).

    The losses are the model's own training loss L of each image; for forget images, the target is Gaussian
    noise (see `noise_images`) instead of the image. Otherwise like `max_loss`.
    """
    _check_losses(retain_losses=retain_losses, forget_losses=forget_losses)
    return _weighted_sum(retain_losses, forget_losses, alpha, **options)


def retain_label_loss(
    student_retain: PyTree[Float[Array, "retain ..."]],
    teacher_retain: PyTree[Float[Array, "retain ..."]],
    student_forget: PyTree[Float[Array, "forget ..."]],
    *,
    alpha: float | Float[Array, ""],
    **options: Unpack[LossOptions],
) -> tuple[Float[Array, ""], Terms]:
    """Use retain images as the targets of forget images, in the outputs of the whole model h.

        mean ‖h(T(x_r)) − h_0(T(x_r))‖²  +  α · mean ‖h(T(x_f)) − h_0(T(x_r))‖²

    The arguments are outputs: h(T(x_r)), h_0(T(x_r)) of the original model, and h(T(x_f)). Forget image i is
    paired with retain image i, cyclically if there are fewer retain images. Otherwise like `unlearning_loss`.
    """
    _check_floating(teacher_retain=teacher_retain, student_forget=student_forget)
    rows = len(jax.tree.leaves(student_forget)[0])

    def paired(x):
        return x if len(x) == rows else jnp.asarray(x)[jnp.arange(rows) % len(x)]

    target = jax.tree.map(paired, teacher_retain)
    return unlearning_loss(student_retain, teacher_retain, student_forget, target, alpha=alpha, **options)


def random_encoder_loss(
    student_retain: PyTree[Float[Array, "retain ..."]],
    teacher_retain: PyTree[Float[Array, "retain ..."]],
    student_forget: PyTree[Float[Array, "forget ..."]],
    noise: PyTree[Float[Array, "forget ..."]],
    *,
    alpha: float | Float[Array, ""],
    **options: Unpack[LossOptions],
) -> tuple[Float[Array, ""], Terms]:
    """Move the features of forget images to Gaussian noise n.

        mean ‖E(T(x_r)) − E_0(T(x_r))‖²  +  α · mean ‖E(T(x_f)) − n‖²

    `noise_features` draws n with the mean and the standard deviation of the original features. Otherwise like
    `unlearning_loss`.
    """
    return unlearning_loss(student_retain, teacher_retain, student_forget, noise, alpha=alpha, **options)


class UnlearningInputs(NamedTuple):
    """Corrupted inputs of student and teacher; trees of equal structure with leaves `[batch, …]`.

    Attributes:
      retain: T(x_r), for both.
      forget: T(x_f), for the student.
      noise: T(n), for the teacher, with the same draw of T as `forget`.
    """

    retain: Any
    forget: Any
    noise: Any


def encoder_unlearning_loss(
    encode: Callable[[Any, Any], PyTree[Float[Array, "batch ..."]]],
    student: Any,
    teacher: Any,
    inputs: UnlearningInputs,
    *,
    alpha: float | Float[Array, ""] = 0.25,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], Terms]:
    """Compute `unlearning_loss` of an encoder.

    The student runs once on retain and forget inputs, the teacher once on retain and noise inputs. Both
    batches are interleaved, so a sharded batch is not moved between devices.

    Args:
      encode: Encoder `(params, inputs) -> features`.
      student: Parameters to differentiate.
      teacher: Parameters of the original encoder, not differentiated.
      inputs: Inputs of both encoders, from `unlearning_inputs`.
      alpha: Weight of the forget term.
      axis_name: Mapped axis over which the batch is split.
    """
    _check_arrays(**inputs._asdict())
    shapes = [jax.tree.map(jnp.shape, part) for part in inputs]
    if not shapes[0] == shapes[1] == shapes[2]:
        given = ", ".join(map(str, shapes))
        raise ValueError(f"retain, forget and noise inputs must be equal in structure and shape, not {given}")
    student_retain, student_forget = deinterleave(encode(student, interleave(inputs.retain, inputs.forget)))
    teacher_retain, teacher_noise = deinterleave(encode(teacher, interleave(inputs.retain, inputs.noise)))
    pairs = student_retain, teacher_retain, student_forget, teacher_noise
    return unlearning_loss(*pairs, alpha=alpha, axis_name=axis_name)


def unlearning_inputs(
    corrupt: Callable[[Float[Array, "batch height width channel"], Key[Array, ""]], Any],
    retain: Float[Array, "batch height width channel"],
    forget: Float[Array, "batch height width channel"],
    rng: Key[Array, ""],
    *,
    noise: NoiseKind = "normal",
    value_range: tuple[float, float] = (0.0, 1.0),
    axis_name: str | None = None,
) -> UnlearningInputs:
    """Draw noise and corrupt all images; forget images and noise get the same draw of T.

    Args:
      corrupt: T, `(images, rng) -> inputs`; equal keys must give equal draws.
      retain: Images.
      forget: Images of the same shape.
      rng: JAX key. Under `axis_name`, the device's index is folded into the key passed to `corrupt`.
      noise: Kind of noise, see `noise_images`; its statistics are those of retain and forget images.
      value_range: Least and greatest valid pixel.
      axis_name: Mapped axis over which the batch is split.
    """
    noise_image = batch_noise(retain, forget, rng, kind=noise, value_range=value_range, axis_name=axis_name)
    if axis_name is not None:  # `corrupt` gets this device's rows only
        rng = jax.random.fold_in(rng, jax.lax.axis_index(axis_name))
    retain_key, forget_key = corruption_keys(rng)
    noisy = corrupt(noise_image, forget_key)
    return UnlearningInputs(corrupt(retain, retain_key), corrupt(forget, forget_key), noisy)


def corruption_keys(rng: Key[Array, ""]) -> tuple[Key[Array, ""], Key[Array, ""]]:
    """Return the keys of T for retain and for forget images."""
    return jax.random.fold_in(rng, 0), jax.random.fold_in(rng, 1)


def batch_noise(
    retain: Float[Array, "batch ..."],
    forget: Float[Array, "batch ..."],
    rng: Key[Array, ""],
    *,
    kind: NoiseKind = "normal",
    value_range: tuple[float, float] = (0.0, 1.0),
    axis_name: str | None = None,
) -> Float[Array, "batch ..."]:
    """Draw `noise_images` in the shape of `forget` with the statistics of both halves of the batch."""
    _check_floating(retain=retain, forget=forget)
    _check_key(rng)
    if retain.shape != forget.shape:
        shapes = f"{retain.shape} and {forget.shape}"
        raise ValueError(f"retain and forget batches must have the same shape, not {shapes}")
    both = jnp.stack([retain, forget], axis=1)  # a new axis, so no rows move between devices
    noise_key = jax.random.fold_in(rng, 2)
    return noise_images(both, noise_key, kind, value_range=value_range, axis_name=axis_name)[:, 1]


def noise_images(
    images: Float[Array, "batch ..."],
    rng: Key[Array, ""],
    kind: NoiseKind = "normal",
    *,
    value_range: tuple[float, float] = (0.0, 1.0),
    axis_name: str | None = None,
) -> Float[Array, "batch ..."]:
    """Draw noise images n ~ N(0, Σ) in the shape of `images` (Li et al. 2024, section 3).

    The default is "normal" because the Gaussian has the highest entropy of all signals with a given
    covariance. The statistics are scalars over the global batch.

    Args:
      images: Images within `value_range`.
      rng: JAX key, the same on every device; each device takes its rows of one draw for the global batch.
      kind: "normal" has the mean and the unbiased standard deviation of the pixels and is clipped to
        `value_range`; "uniform" is uniform over `value_range`; "constant" is the mean everywhere.
      value_range: Least and greatest valid pixel.
      axis_name: Mapped axis over which the batch is split.
    """
    low, high = value_range
    if not low < high:
        raise ValueError(f"value_range must increase, not {value_range}")
    if kind not in NOISE_KINDS:
        raise ValueError(f"kind must be one of {', '.join(NOISE_KINDS)}, not {kind!r}")
    _check_floating(images=images)
    _check_key(rng)
    rows, *shape = images.shape
    if kind == "uniform":
        dtype = images.dtype
        return draw_rows(lambda n: jax.random.uniform(rng, (n, *shape), dtype, low, high), rows, axis_name)
    mean, std = mean_and_std(images.astype(jnp.float32), axis_name)
    if kind == "constant":
        return jnp.full_like(images, mean)
    gauss = draw_rows(lambda n: jax.random.normal(rng, (n, *shape), images.dtype), rows, axis_name)
    return jnp.clip(mean + std * gauss, low, high).astype(images.dtype)


def noise_features(
    features: PyTree[Float[Array, "batch ..."]], rng: Key[Array, ""], axis_name: str | None = None
) -> PyTree[Float[Array, "batch ..."]]:
    """Draw Gaussian noise with the mean and the unbiased standard deviation of each array of a tree.

    The statistics are scalars over the global batch, which is split over `axis_name`.
    """
    _check_floating(features=features)
    _check_key(rng)
    leaves, structure = jax.tree.flatten(features)

    def draw(x, key):
        mean, std = mean_and_std(x.astype(jnp.float32), axis_name)
        noise = draw_rows(lambda rows: jax.random.normal(key, (rows, *x.shape[1:])), x.shape[0], axis_name)
        return (mean + std * noise).astype(x.dtype)

    keys = jax.random.split(rng, len(leaves))
    return jax.tree.unflatten(structure, [draw(x, key) for x, key in zip(leaves, keys, strict=True)])


def feature_distance(
    features: PyTree[Shaped[Array, "batch ..."]],
    target: PyTree[Shaped[Array, "batch ..."]],
    *,
    where: Bool[Array, "batch ..."] | None = None,
) -> Float[Array, " batch"]:
    """Compute ‖features − target‖² of every example in float32.

    The distance is the mean over all axes but the batch axis, summed over the leaves of the tree, such as
    the feature maps of a U-Net.

    `where` is a boolean mask over the leading axes of every leaf, such as `[batch]` or `[batch, token]`. The
    mean is over the entries where it is true, and 0 for an example without any.
    """
    _check_arrays(features=features, target=target)
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
        # Masked before squaring: masked entries may be infinite and must not reach the gradient.
        square = jnp.square(jnp.where(mask, difference.reshape(mask.shape), 0))
        return square.sum(axis=1) / jnp.maximum(mask.sum(axis=1), 1)

    return functools.reduce(jnp.add, jax.tree.leaves(jax.tree.map(distance, features, target)))


def _fitted(where: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Append axes of size 1 to a mask over the leading axes."""
    _check_arrays(where=where)
    if where.dtype != jnp.bool_:
        raise TypeError(f"where must be boolean, not {where.dtype}")
    if where.ndim == 0 or where.shape != shape[: where.ndim]:
        raise ValueError(f"where has shape {where.shape}: not the first axes of features {shape}")
    return where.reshape(*where.shape, *[1] * (len(shape) - where.ndim))


def _weighted_sum(
    retain: jax.Array,
    forget: jax.Array,
    weight: float | jax.Array,
    *,
    where: Where | None = None,
    per_example: bool = False,
    axis_name: str | None = None,
) -> tuple[jax.Array, Terms]:
    """Return mean retain + weight · mean forget of per-example losses, and the two terms."""
    masks = where or (None, None)
    means = [_mean(losses, mask, axis_name) for losses, mask in zip((retain, forget), masks, strict=True)]
    terms = (retain, forget) if per_example else means
    return means[0] + weight * means[1], {"retain": terms[0], "forget": terms[1]}


def _mean(losses: jax.Array, where: jax.Array | None, axis_name: str | None) -> jax.Array:
    """Average `[batch]` over the included examples on all devices."""
    losses = losses.astype(jnp.float32)
    if where is None:
        mean = losses.mean()
        return mean if axis_name is None else jax.lax.pmean(mean, axis_name)
    total, count = jnp.where(_fitted(where, losses.shape), losses, 0).sum(), where.sum()
    if axis_name is not None:  # devices may have different counts
        total, count = jax.lax.psum(total, axis_name), jax.lax.psum(count, axis_name)
    return total / jnp.maximum(count, 1)


def _check_arrays(**trees: Any) -> None:
    for name, tree in trees.items():
        for x in jax.tree.leaves(tree):
            if not isinstance(x, jax.Array | np.ndarray | np.generic):
                kind = f"{type(x).__module__}.{type(x).__qualname__}".removeprefix("builtins.")
                hint = " Convert it with jax.numpy.from_dlpack." if hasattr(x, "__dlpack__") else ""
                raise TypeError(f"{name} holds a {kind}; expected JAX or NumPy arrays.{hint}")


def _check_floating(**trees: Any) -> None:
    _check_arrays(**trees)
    for name, tree in trees.items():
        for x in jax.tree.leaves(tree):
            if not jnp.issubdtype(x.dtype, jnp.floating):
                raise TypeError(
                    f"{name} has type {x.dtype}; expected a floating-point array. Convert it first, images "
                    "to their value range."
                )


def _check_losses(**sets: jax.Array) -> None:
    _check_floating(**sets)
    for name, losses in sets.items():
        if losses.ndim != 1:
            raise ValueError(f"{name} must have one number per example, [batch], not shape {losses.shape}")


def _check_key(rng: Any) -> None:
    dtype = getattr(rng, "dtype", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not typed and not (dtype == jnp.uint32 and np.ndim(rng) == 1):  # the latter is a jax.random.PRNGKey
        raise TypeError(f"rng is {rng!r}; expected a JAX key, such as jax.random.key(0)")
