"""Masks in image space: bool masks `[height, width]`, True where pixels are missing.

`MASKS` are the fixed masks used at test time. Inpainting models are trained with random masks, which
`mask_bank` draws on the host. Free-form strokes follow Yu et al. 2019 ("Free-form image inpainting with gated
convolution", algorithm 1). Strokes and boxes use the parameters with which Palette is trained at 256 pixels;
every length scales with the image. Invalid sizes raise a ValueError.
"""

from __future__ import annotations  # jaxtyping is not needed at run time

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    Mask = Bool[np.ndarray, "size size"]

SIDES = ("left", "right", "top", "bottom")


def center_mask(size: int, width: int) -> Mask:
    """Return a centered square mask of `width` pixels.

    Half of `size` is the paper's larger inpainting task, a quarter the smaller.
    """
    if (size - width) % 2:
        raise ValueError(f"a mask {width} pixels wide cannot be centered in {size} pixels")
    if not 0 < width < size:
        raise ValueError(f"a centered mask in {size} pixels is 1 to {size - 1} pixels wide, not {width}")
    return ~border_mask(size, (size - width) // 2)


def border_mask(size: int, width: int) -> Mask:
    """Return an outpainting mask: a border of `width` pixels on every side is missing."""
    if not 0 < width < size / 2:
        raise ValueError(f"a border in {size} pixels is 1 to {(size - 1) // 2} wide, not {width}")
    return ~np.pad(np.ones([size - 2 * width] * 2, bool), width)


def side_mask(size: int, width: int, side: str) -> Mask:
    """Return a mask of a strip of `width` pixels at the left, right, top or bottom."""
    if not 0 < width < size:
        raise ValueError(f"a strip in {size} pixels is 1 to {size - 1} pixels wide, not {width}")
    if side not in SIDES:
        raise ValueError(f"side must be one of {', '.join(SIDES)}, not {side!r}")
    inside = np.arange(size) < width
    inside = inside if side in ("left", "top") else inside[::-1]
    return np.broadcast_to(inside if side in ("left", "right") else inside[:, None], (size, size)).copy()


def grow(mask: npt.ArrayLike, margin: int) -> Bool[np.ndarray, "rows columns"]:
    """Grow a mask by `margin` pixels in all eight directions."""
    from scipy import ndimage  # slow to import

    return ndimage.maximum_filter(np.asarray(mask), size=2 * margin + 1)


MaskName = Literal["centre", "border", "left", "right", "top", "bottom"]

MASKS: Mapping[str, Callable[[int, int], np.ndarray]] = {
    "centre": center_mask,
    "border": border_mask,
    **{side: functools.partial(side_mask, side=side) for side in SIDES},
}
"""Test-time masks by their names: `(image size, width) -> mask`."""

TrainingMask = Literal["hybrid", "free_form", "box", "centre"]
TRAINING_MASKS: tuple[str, ...] = get_args(TrainingMask)


def box_mask(rng: np.random.Generator, size: int) -> Mask:
    """Draw a rectangle with sides of 108/256 to 128/256 of the image's, at least 20/256 from its edges.

    Side lengths and position are uniform and independent. (Palette's own boxes have the same sides but are
    biased to the lower right, because only their upper left corner moves as they shrink.)
    """
    margin, least, most = (round(size * share / 256) for share in (20, 108, 128))
    mask = np.zeros((size, size), bool)
    height, width = rng.integers(least, most, size=2, endpoint=True)
    top = rng.integers(margin, size - margin - height, endpoint=True)
    left = rng.integers(margin, size - margin - width, endpoint=True)
    mask[top : top + height, left : left + width] = True
    return mask


def free_form_mask(rng: np.random.Generator, size: int) -> Mask:
    """Draw one to three brush strokes of width 12/256 to 39/256 of the side; see `stroke_vertices`."""
    mask = np.zeros((size, size), bool)
    for _ in range(rng.integers(1, 3, endpoint=True)):
        vertices = stroke_vertices(rng, size)
        width = round(rng.uniform(11.5, 39.5) * size / 256)  # at 256 pixels: 12, …, 39, equally likely
        mask |= stroke_mask(vertices, max(1, width), size)
    return mask


def stroke_vertices(rng: np.random.Generator, size: int) -> Float[np.ndarray, "vertex 2"]:
    """Draw the vertices (x, y), in pixels, of a zigzag of 4 to 11 lines, clipped to the image.

    The start is uniform over the image. Headings alternate between 2π/5 and −2π/5, plus a uniform deviation
    whose lower and upper bounds are drawn once per stroke, uniform up to 2π/15. Lengths are normal with mean
    diagonal / 8 and half of that as standard deviation, clipped to [0, diagonal / 4].
    """
    lines = rng.integers(4, 11, endpoint=True)
    below, above = rng.uniform(0, 2 * np.pi / 15, size=2)
    headings = 2 * np.pi / 5 + rng.uniform(-below, above, size=lines)
    headings[::2] *= -1
    mean = np.sqrt(2) * size / 8
    lengths = np.clip(rng.normal(mean, mean / 2, size=lines), 0, 2 * mean)
    vertices = [rng.uniform(0, size, size=2)]
    for heading, length in zip(headings, lengths, strict=True):
        move = length * np.array([np.cos(heading), np.sin(heading)])
        vertices.append(np.clip(vertices[-1] + move, 0, size - 1))
    return np.array(vertices)


def stroke_mask(vertices: Float[np.ndarray, "vertex 2"], width: int, size: int) -> Mask:
    """Return the pixels under a round brush of `width` pixels along the polyline `vertices` (x, y)."""
    image = Image.new("1", (size, size))
    draw = ImageDraw.Draw(image)
    points = [(float(x), float(y)) for x, y in vertices]
    draw.line(points, fill=1, width=width)
    radius = (width - 1) / 2  # round caps and joints; Pillow draws both edges of the ellipse
    for x, y in points:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)
    return np.array(image)


def mask_bank(kind: TrainingMask, count: int, size: int, seed: int) -> Bool[np.ndarray, "count size size"]:
    """Draw a bank of training masks.

    "hybrid" is Palette's kind, a box plus strokes; "centre" always gives a single mask. Equal arguments give
    equal masks on every host.
    """
    if kind not in TRAINING_MASKS:
        raise ValueError(f"training_holes must be one of {', '.join(TRAINING_MASKS)}, not {kind!r}")
    if count < 1:
        raise ValueError(f"a bank needs at least one mask, not {count}")
    if kind == "centre":
        half = size // 4 * 2 + size % 2  # about half the side, with the parity that can be centered
        return center_mask(size, half)[None]
    rng, masks = np.random.default_rng(seed), np.zeros((count, size, size), bool)
    for mask in masks:
        if kind in ("box", "hybrid"):
            mask |= box_mask(rng, size)
        if kind in ("free_form", "hybrid"):
            mask |= free_form_mask(rng, size)
    return masks
