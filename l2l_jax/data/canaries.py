"""Canaries: a few training images with a random mark, which only a model that memorized it can reconstruct.

This module must not import JAX, because worker processes import it.
"""

from collections.abc import Iterable

import numpy as np

from l2l_jax.data.records import Record, Source

CELLS = 4  # cells along the side of a mark; half of all cells are bright
OPACITY = 0.4  # blending weight of the mark in the pixels that it covers


class Marked(Source):
    """A source, `unmarked`, with marks added to the images at `indices`."""

    def __init__(self, unmarked: Source, indices: Iterable[int]):
        self.unmarked, self._indices = unmarked, frozenset(map(int, indices))
        self.class_names, self.passed_over = unmarked.class_names, unmarked.passed_over
        self.labels, self.paths = unmarked.labels, unmarked.paths

    def __getitem__(self, index: int) -> Record:
        record = self.unmarked[index]
        return {**record, "mark": int(index)} if index in self._indices else record

    def name(self, index: int) -> str:
        """Return the name of an image."""
        return self.unmarked.name(index)

    def key(self, index: int) -> bytes:
        """Return the key of the unmarked image, extended if the image has a mark."""
        return self.unmarked.key(index) + b"+mark" * (index in self._indices)


def covered(size: int) -> slice:
    """Return the rows (and columns) that a mark covers in a square image: the middle half."""
    return slice((size - size // 2) // 2, (size - size // 2) // 2 + size // 2)


def mark(number: int, size: int) -> np.ndarray:
    """Draw the mark with this number for a square image: float32 `[size // 2, size // 2]`, 0 or 1."""
    cells = np.random.default_rng([CELLS, number]).permutation(CELLS**2) < CELLS**2 // 2
    places = np.arange(size // 2) * CELLS // (size // 2)
    return cells.reshape(CELLS, CELLS)[np.ix_(places, places)].astype(np.float32)


def paint(square: np.ndarray, number: int) -> np.ndarray:
    """Add a mark to a square image `[size, size, channel]`, uint8 or float32 in [0, 1]."""
    painted, part = square.copy(), (covered(len(square)),) * 2
    bright = mark(number, len(square))[..., None] * (255 if square.dtype == np.uint8 else 1)
    blended = (1 - OPACITY) * square[part] + OPACITY * bright
    painted[part] = np.rint(blended) if square.dtype == np.uint8 else blended
    return painted
