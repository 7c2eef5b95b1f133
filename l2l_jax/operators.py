"""Holes in image space: bool masks `[height, width]`, True where pixels are missing."""

from typing import Literal

import numpy as np

SIDES = ("left", "right", "top", "bottom")


def centre_hole(size: int, width: int) -> np.ndarray:
    """A centred square hole.

    Args:
      size: side of the image in pixels.
      width: side of the hole in pixels; half of `size` in the paper's larger inpainting task, a
        quarter in the smaller.

    Raises:
      ValueError: the hole is empty or leaves nothing, or cannot be centred.
    """
    if not 0 < width < size:
        raise ValueError(f"a centred hole in {size} pixels is 1 to {size - 1} pixels wide, not {width}")
    if (size - width) % 2:
        raise ValueError(f"a hole {width} pixels wide cannot be centred in {size} pixels")
    hole = np.zeros((size, size), bool)
    start = (size - width) // 2
    hole[start : start + width, start : start + width] = True
    return hole


def border_hole(size: int, width: int) -> np.ndarray:
    """Outpainting: a border of `width` pixels is missing on every side.

    Raises:
      ValueError: the border is empty or leaves nothing.
    """
    if not 0 < width < size / 2:
        raise ValueError(f"a border in {size} pixels is 1 to {(size - 1) // 2} wide, not {width}")
    hole = np.ones((size, size), bool)
    hole[width : size - width, width : size - width] = False
    return hole


def side_hole(size: int, width: int, side: str) -> np.ndarray:
    """A strip of `width` pixels is missing at the left, right, top or bottom.

    Raises:
      ValueError: the strip is empty or leaves nothing, or the side is unknown.
    """
    if not 0 < width < size:
        raise ValueError(f"a strip in {size} pixels is 1 to {size - 1} pixels wide, not {width}")
    if side not in SIDES:
        raise ValueError(f"side must be one of {', '.join(SIDES)}, not {side!r}")
    hole = np.zeros((size, size), bool)
    inside = slice(0, width) if side in ("left", "top") else slice(size - width, size)
    hole[:, inside] = side in ("left", "right")
    hole[inside, :] |= side in ("top", "bottom")
    return hole


HoleName = Literal["centre", "border", "left", "right", "top", "bottom"]

HOLES = {
    "centre": centre_hole,
    "border": border_hole,
    **{side: lambda size, width, side=side: side_hole(size, width, side) for side in SIDES},
}
"""Test-time holes by their names: `(image size, width) -> mask`."""
