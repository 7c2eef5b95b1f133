"""Drawing what the losses of methods read: corrupted images, and noise in their place."""

from collections.abc import Callable
from typing import Any

import jax

from l2l_jax.losses import NoiseKind, batch_noise, corruption_keys
from l2l_jax.models.base import Model, Params
from l2l_jax.utils.batch_axis import deinterleave, interleave


def corrupt_images(
    model: Model, frozen: Params, batch: Any, rng: jax.Array, axis_name: str | None = None
) -> dict[str, dict[str, Any]]:
    """Return `{set: {"images", "corrupted"}}` of retain and forget images: the images, and T of them.

    Raises:
      ValueError: The shapes of the two sets differ.
    """
    shapes = {name: batch[name].shape for name in ("retain", "forget")}
    if shapes["retain"] != shapes["forget"]:
        raise ValueError(
            f"retain and forget batches must have one shape, not {shapes['retain']} and {shapes['forget']}"
        )
    return {
        name: {"images": batch[name], "corrupted": model.corrupt(frozen, batch[name], key, axis_name)}
        for name, key in zip(("retain", "forget"), corruption_keys(rng), strict=True)
    }


def corrupt_noise(
    model: Model,
    frozen: Params,
    batch: Any,
    rng: jax.Array,
    noise: NoiseKind,
    axis_name: str | None,
) -> Any:
    """Return T of noise images, with the draw of T of the forget images.

    The noise images are drawn, or are the batch's own under "noise".
    """
    retain, forget = batch["retain"], batch["forget"]
    drawn = batch.get("noise")
    if drawn is None:
        drawn = batch_noise(
            retain, forget, rng, kind=noise, value_range=model.value_range, axis_name=axis_name
        )
    return model.corrupt_noise(frozen, forget, drawn, corruption_keys(rng)[1], axis_name)


def student_and_teacher_inputs(model: Model, noise: NoiseKind) -> Callable[..., dict[str, Any]]:
    """Return `Objective.prepare` of the fields of `l2l_jax.losses.UnlearningInputs`."""

    def prepare(frozen, batch, rng, axis_name=None):
        views = corrupt_images(model, frozen, batch, rng, axis_name)
        noisy = corrupt_noise(model, frozen, batch, rng, noise, axis_name)
        return {of: view["corrupted"] for of, view in views.items()} | {"noise": noisy}

    return prepare


def generative_losses(
    model: Model, params: Params, views: dict[str, dict[str, Any]]
) -> tuple[jax.Array, jax.Array]:
    """Return the model's own training loss of every example of `{set: {"images", "corrupted"}}`."""
    rows = interleave(views["retain"], views["forget"])
    return deinterleave(model.generative_loss(params, rows["images"], rows["corrupted"]))
