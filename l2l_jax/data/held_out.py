"""Test images for sources that have none."""

import zlib
from collections.abc import Sequence

import numpy as np

from l2l_jax.data.records import Split


def held_out(names: Sequence[str], labels: np.ndarray, share: float, split: Split) -> np.ndarray:
    """Indices of the training or of the test images, ascending.

    Of each class the images whose names have the smallest checksums are test images: at least one,
    unless there is only one image. The choice depends on the names alone, so it is the same on
    every machine, and images that are added later change little of it.

    Args:
      names: of the images.
      labels: their class ids.
      share: of the test images, between 0 and 1.
      split: which of the two.
    """
    checksums = np.fromiter(
        (zlib.crc32(name.encode("utf-8", "surrogateescape")) for name in names), np.uint32
    )
    order = np.lexsort((np.arange(len(labels)), checksums, labels))
    _, first, counts = np.unique(np.asarray(labels)[order], return_index=True, return_counts=True)
    rank = np.arange(len(labels)) - np.repeat(first, counts)
    tests = np.maximum(np.rint(share * counts), 1)
    tests[counts == 1] = 0
    is_test = rank < np.repeat(tests, counts)
    return np.sort(order[is_test if split == "test" else ~is_test])
