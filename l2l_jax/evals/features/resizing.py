"""Image resizing that matches the published implementations of metrics, by products with two small matrices.

Resizing by a separable filter is linear along each axis. On the device, its cost is small compared with a
network, and the images are transferred small and as bytes. `jax.image.resize` computes positions between
pixels in float32, which changes pixels by up to 0.0014 of 255, and does not round like Pillow.
"""

from __future__ import annotations  # jaxtyping is not needed at run time

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Num

Filter = Literal["bicubic", "bilinear"]


def _bicubic(x: np.ndarray) -> np.ndarray:
    """Evaluate Keys' cubic kernel with a = -1/2, as in Pillow."""
    x = np.abs(x)
    inner = (1.5 * x - 2.5) * x * x + 1
    outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, inner, np.where(x < 2, outer, 0))


FILTERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "bicubic": _bicubic,
    "bilinear": lambda x: np.maximum(1 - np.abs(x), 0),
}


def resizing_matrix(
    source: int, target: int, kind: Filter, *, antialias: bool
) -> Float[np.ndarray, "target source"]:
    """Return the weights of `source` pixels in each of `target` pixels, float64 `[target, source]`.

    Pixels are squares, and the edges of both rows coincide. Weights beyond an edge are dropped, and the
    others are normalized to sum to 1. `antialias` widens the filter when downsampling, as Pillow does;
    PyTorch does not by default.
    """
    scale = source / target
    width = max(scale, 1.0) if antialias else 1.0
    centers = (np.arange(target) + 0.5) * scale - 0.5
    weights = FILTERS[kind]((np.arange(source)[None] - centers[:, None]) / width)
    return weights / weights.sum(axis=1, keepdims=True)


def resized(
    x: jax.Array,
    height: int,
    width: int,
    kind: Filter,
    *,
    antialias: bool = True,
    bytes_between: bool = False,
) -> jax.Array:
    """Resize images to float32 `[image, height, width, channel]` in [0, 255].

    - clean-fid: "bicubic", which matches Pillow on single float channels, clipped to [0, 255].
    - pytorch-fid: "bilinear" without `antialias`: `torch.nn.functional.interpolate`, `align_corners=False`.
    - CLIP: "bicubic" with `bytes_between`, which matches Pillow on an RGB image: it rounds to integers in
      [0, 255] after each axis, width first.
    """
    rows, columns = (
        jnp.asarray(resizing_matrix(source, target, kind, antialias=antialias), jnp.float32)
        for source, target in zip(x.shape[1:3], (height, width), strict=True)
    )

    def rounded(x: jax.Array) -> jax.Array:
        return jnp.clip(jnp.floor(x + 0.5), 0, 255) if bytes_between else x

    exact = jax.lax.Precision.HIGHEST
    x = rounded(jnp.einsum("bhwc,vw->bhvc", x.astype(jnp.float32), columns, precision=exact))
    x = rounded(jnp.einsum("bhwc,uh->buwc", x, rows, precision=exact))
    return jnp.clip(x, 0, 255)


def center_square(
    images: Num[Array, "batch height width channel"], side: int
) -> Num[Array, "batch side side channel"]:
    """Resize the shorter side of images to `side` pixels and crop the center `[image, side, side, channel]`.

    This matches torchvision's `Resize(side)` and `CenterCrop(side)`. See `resized` for the rounding.
    """
    height, width = images.shape[1:3]
    shorter = min(height, width)
    tall, wide = side * height // shorter, side * width // shorter
    images = resized(images, tall, wide, "bicubic", bytes_between=True)
    top, left = round((tall - side) / 2), round((wide - side) / 2)
    return images[:, top : top + side, left : left + side]
