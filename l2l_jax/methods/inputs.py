"""Inputs for the losses of methods: corrupted images, and replacement targets for forget images."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from l2l_jax.losses import NoiseKind, batch_noise, corruption_keys, noise_images
from l2l_jax.methods.base import Objective, unlearning_objective
from l2l_jax.models.base import Model, Params
from l2l_jax.utils.batch_axis import deinterleave, interleave

# `{set: {"images", "corrupted"}}` for the retain and forget images of a batch: images x and inputs T(x)
Views = dict[str, dict[str, Any]]
TargetKind = Literal["noise", "blur", "mean"]
BLUR = 0.1  # default standard deviation of the blur, as a share of the image's side


def corrupt_images(
    model: Model, frozen: Params, batch: Any, rng: jax.Array, axis_name: str | None = None
) -> Views:
    """Apply T to the images of both sets.

    Raises:
      ValueError: The shapes of the two sets differ.
    """
    shapes = {name: batch[name].shape for name in ("retain", "forget")}
    if shapes["retain"] != shapes["forget"]:
        raise ValueError(f"retain and forget batches must have the same shape, not {shapes}")
    return {
        name: {"images": batch[name], "corrupted": model.corrupt(frozen, batch[name], key, axis_name)}
        for name, key in zip(("retain", "forget"), corruption_keys(rng), strict=True)
    }


def corrupt_noise(
    model: Model, frozen: Params, batch: Any, rng: jax.Array, noise: NoiseKind, axis_name: str | None
) -> Any:
    """Return T(n) with the same draw of T as for the forget images; n is the batch's "noise" or is drawn."""
    retain, forget, drawn = batch["retain"], batch["forget"], batch.get("noise")
    if drawn is None:
        span = model.value_range
        drawn = batch_noise(retain, forget, rng, kind=noise, value_range=span, axis_name=axis_name)
    return model.corrupt_noise(frozen, forget, drawn, corruption_keys(rng)[1], axis_name)


def student_and_teacher_inputs(model: Model, noise: NoiseKind) -> Callable[..., dict[str, Any]]:
    """Return a function for `Objective.prepare` that computes the fields of `losses.UnlearningInputs`."""

    def prepare(frozen, batch, rng, axis_name=None):
        views = corrupt_images(model, frozen, batch, rng, axis_name)
        noisy = corrupt_noise(model, frozen, batch, rng, noise, axis_name)
        return {name: view["corrupted"] for name, view in views.items()} | {"noise": noisy}

    return prepare


def generative_losses(model: Model, params: Params, views: Views) -> tuple[jax.Array, jax.Array]:
    """Return the model's own training loss of each retain and each forget example."""
    rows = interleave(views["retain"], views["forget"])
    return deinterleave(model.generative_loss(params, rows["images"], rows["corrupted"]))


def forget_truth(
    model: Model,
    frozen: Params,
    views: Views,
    rng: jax.Array,
    kind: TargetKind,
    axis_name: str | None = None,
    *,
    blur: float = BLUR,
) -> dict[str, Any]:
    """Return `{"images", "corrupted"}` of the forget set for `generative_loss`, with another target.

    "corrupted" is unchanged unless the family reads the target from it.

    Args:
      model: Model.
      frozen: Parts of the original parameters.
      views: Images and inputs of both sets.
      rng: JAX key.
      kind: "noise" for Gaussian noise with the statistics of both sets, whose reconstructions are visibly
        without content; "blur" for the image under a Gaussian blur, a plausible guess without detail (cf.
        SecureT2I, 2025); "mean" for the mean of the batch's retain images, the same for all images.
      axis_name: Mapped axis over which the batch is split.
      blur: Standard deviation of "blur" as a share of the image's side.

    Raises:
      ValueError: `kind` is unknown.
    """
    if kind == "noise":
        both = interleave(views["retain"], views["forget"])
        noise_key, truth_key = jax.random.fold_in(rng, 2), jax.random.fold_in(rng, 3)
        noise = noise_images(both["images"], noise_key, value_range=model.value_range, axis_name=axis_name)
        images, corrupted = model.noisy_truth(both["images"], both["corrupted"], noise, truth_key, axis_name)
        kept = corrupted is both["corrupted"]
        corrupted = views["forget"]["corrupted"] if kept else deinterleave(corrupted)[1]
        return {"images": deinterleave(images)[1], "corrupted": corrupted}
    forget = views["forget"]
    if kind == "blur":
        truth = blurred(forget["images"], blur * model.image_size)
    elif kind == "mean":
        mean = views["retain"]["images"].mean(axis=0, keepdims=True)
        mean = mean if axis_name is None else jax.lax.pmean(mean, axis_name)
        truth = jnp.broadcast_to(mean, forget["images"].shape)
    else:
        raise ValueError(f"target must be noise, blur or mean, not {kind!r}")
    images, corrupted = model.with_truth(frozen, forget["images"], forget["corrupted"], truth)
    return {"images": images, "corrupted": corrupted}


def blurred(images: jax.Array, sigma: float) -> jax.Array:
    """Apply a Gaussian blur of `sigma` pixels to images `[batch, height, width, channel]`.

    The kernel is truncated at the borders and normalized to a sum of 1.
    """

    def weights(size: int) -> jax.Array:
        distance = np.subtract.outer(np.arange(size), np.arange(size)) / sigma
        kernel = np.exp(-np.square(distance) / 2)
        return jnp.asarray(kernel / kernel.sum(axis=1, keepdims=True), images.dtype)

    height, width = images.shape[1:3]
    return jnp.einsum("jw,biwc->bijc", weights(width), jnp.einsum("ih,bhwc->biwc", weights(height), images))


def generative_objective(
    model: Model, loss: Callable[..., Any], truth: TargetKind | None = None, **fields: Any
) -> Objective:
    """Return an objective on the model's own training loss of each retain and each forget example.

    Args:
      model: Model.
      loss: Loss of `l2l_jax.losses` that combines them.
      truth: Target of forget images, see `forget_truth`; None: the images themselves.
      **fields: Other fields of `Objective`.
    """

    def prepare(frozen, batch, rng, axis_name=None):
        views = corrupt_images(model, frozen, batch, rng, axis_name)
        if truth is None:
            return views
        return {**views, "forget": forget_truth(model, frozen, views, rng, truth, axis_name)}

    def weighted(trained, frozen, inputs, alpha):
        return loss(*generative_losses(model, {**frozen, **trained}, inputs), alpha=alpha)

    return unlearning_objective(model, model.generative_parts, prepare, weighted, **fields)
