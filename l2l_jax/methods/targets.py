"""Images that forget images are trained towards, in place of themselves."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from l2l_jax.losses import noise_images
from l2l_jax.models.base import Model, Params
from l2l_jax.utils.batch_axis import deinterleave, interleave

TargetKind = Literal["noise", "blur", "mean"]

BLUR = 0.1
"""Default standard deviation of the blur, as a share of the image's side."""


def forget_truth(
    model: Model,
    frozen: Params,
    views: Any,
    rng: jax.Array,
    kind: TargetKind,
    axis_name: str | None = None,
    *,
    blur: float = BLUR,
) -> dict[str, Any]:
    """Return `{"images", "corrupted"}` of the forget set for `generative_loss`, with another truth.

    Args:
      model: Model.
      frozen: Parts that `corrupt` reads.
      views: `{set: {"images", "corrupted"}}` of retain and forget images.
      rng: JAX key.
      kind: "noise": Gaussian noise with the statistics of both sets; reconstructions carry nothing, and show
        it. "blur": the image under a Gaussian blur, a plausible guess without detail (cf. SecureT2I, 2025).
        "mean": the mean of the batch's retain images, the same for all.
      axis_name: Mapped axis over which the batch is split.
      blur: Standard deviation of the blur, as a share of the image's side.

    Raises:
      ValueError: The kind is unknown.
    """
    if kind == "noise":
        both = interleave(views["retain"], views["forget"])
        noise_key, truth_key = jax.random.fold_in(rng, 2), jax.random.fold_in(rng, 3)
        noise = noise_images(both["images"], noise_key, value_range=model.value_range, axis_name=axis_name)
        images, corrupted = model.noisy_truth(both["images"], both["corrupted"], noise, truth_key, axis_name)
        return deinterleave({"images": images, "corrupted": corrupted})[1]
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
    """Apply a Gaussian blur, as one matrix product along each side.

    Args:
      images: Images `[batch, height, width, channel]`.
      sigma: Standard deviation in pixels. Weights beyond the borders are left out, and the others scaled
        to a sum of 1.
    """

    def weights(size: int) -> jax.Array:
        distance = np.subtract.outer(np.arange(size), np.arange(size)) / sigma
        kernel = np.exp(-np.square(distance) / 2)
        return jnp.asarray(kernel / kernel.sum(axis=1, keepdims=True), images.dtype)

    height, width = images.shape[1:3]
    rows = jnp.einsum("ih,bhwc->biwc", weights(height), images)
    return jnp.einsum("jw,biwc->bijc", weights(width), rows)
