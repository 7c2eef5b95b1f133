"""What a forget image is to be restored as, in place of itself."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from l2l_jax.methods.baselines import noise_as_truth
from l2l_jax.models.base import Model, Params

TargetKind = Literal["noise", "blur", "mean"]

BLUR = 0.1
"""Standard deviation of the blur, as a share of the image's side, unless it is given."""


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
    """`{"images", "seen"}` of the forget set for `generative_loss`, with another truth than the images.

    Args:
      model: the model.
      frozen: the parts that `corrupt` reads.
      views: `{set: {"images", "seen"}}` of retain and forget images.
      rng: key.
      kind: "noise": Gaussian noise, as the method noisy_label has it: restorations carry nothing, and show
        it. "blur": the image under a Gaussian blur, a plausible guess without detail (cf. SecureT2I, 2025).
        "mean": the mean of the batch's retain images, the same for all.
      axis_name: mapped axis over which the batch is split.
      blur: standard deviation of the blur, as a share of the image's side. The more, the further the
        restorations are from the images; the less, the more of an image they keep.

    Raises:
      ValueError: an unknown kind.
    """
    if kind == "noise":
        return noise_as_truth(model, views, rng, axis_name)
    forget = views["forget"]
    if kind == "blur":
        truth = blurred(forget["images"], blur * model.image_size)
    elif kind == "mean":
        mean = views["retain"]["images"].mean(axis=0, keepdims=True)
        mean = mean if axis_name is None else jax.lax.pmean(mean, axis_name)
        truth = jnp.broadcast_to(mean, forget["images"].shape)
    else:
        raise ValueError(f"target must be noise, blur or mean, not {kind!r}")
    images, seen = model.with_truth(frozen, forget["images"], forget["seen"], truth)
    return {"images": images, "seen": seen}


def blurred(images: jax.Array, sigma: float) -> jax.Array:
    """Images under a Gaussian blur, as one product of matrices along each side.

    Args:
      images: `[batch, height, width, channel]`.
      sigma: standard deviation in pixels. Beyond the borders the weights are left out, and the others
        scaled to a sum of 1.
    """

    def weights(size: int) -> jax.Array:
        distance = np.subtract.outer(np.arange(size), np.arange(size)) / sigma
        kernel = np.exp(-np.square(distance) / 2)
        return jnp.asarray(kernel / kernel.sum(axis=1, keepdims=True), images.dtype)

    height, width = images.shape[1:3]
    rows = jnp.einsum("ih,bhwc->biwc", weights(height), images)
    return jnp.einsum("jw,biwc->bijc", weights(width), rows)
