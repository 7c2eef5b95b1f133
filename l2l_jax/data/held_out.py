"""Images that are kept from training: test images for sources that have none, and validation images."""

import zlib
from collections.abc import Sequence

import numpy as np


def held_out(names: Sequence[str], labels: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images that stay, and of those that are held out, both ascending.

    Of each class the images whose names have the smallest checksums are held out: at least one,
    unless there is only one image. The choice depends on the names alone, so it is the same on
    every machine, and images that are added later change little of it.

    Args:
      names: of the images.
      labels: their class ids.
      share: of the images to hold out, between 0 and 1.
    """
    checksums = np.fromiter(
        (zlib.crc32(name.encode("utf-8", "surrogateescape")) for name in names), np.uint32
    )
    order = np.lexsort((np.arange(len(labels)), checksums, labels))
    _, first, counts = np.unique(np.asarray(labels)[order], return_index=True, return_counts=True)
    rank = np.arange(len(labels)) - np.repeat(first, counts)
    held = np.maximum(np.rint(share * counts), 1)
    held[counts == 1] = 0
    is_held = rank < np.repeat(held, counts)
    return np.sort(order[~is_held]), np.sort(order[is_held])
