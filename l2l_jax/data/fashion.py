"""A subset of Fashion-MNIST that comes with this package: 500 training and 200 test images of each class.

The first ones of each class in the order of the original files; tools/fashion_subset.py makes it.
"""

import functools
import hashlib

import numpy as np
from etils import epath

from l2l_jax.data.idx import read_split
from l2l_jax.data.records import ArraySource, SplitName
from l2l_jax.errors import UserError

FOLDER = epath.Path(__file__).parent / "fashion"

CLASS_NAMES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
"""Names of the class ids of Fashion-MNIST."""

SHA256 = {
    "train": "3e4733ae8450a2837c1f62ea9946542fde2197204feb158e5b790257ac34143a",
    "test": "8e8b02fc2db0ff9ed2d481ff30f8bd7cc5c88205cb131d7f4a0c19448f6957c9",
}
"""Digests of the pixels, followed by the labels."""


def open_fashion(split: SplitName) -> ArraySource:
    """Open the training or test images of the subset.

    Raises:
      UserError: The files of the installed package are damaged.
    """
    return ArraySource(*_read(split), CLASS_NAMES, f"fashion/{split}")


@functools.cache
def _read(split: SplitName) -> tuple[np.ndarray, np.ndarray]:
    images, labels = read_split(FOLDER, split)
    if digest(images, labels) != SHA256[split]:
        raise UserError(f"The {split} images in {FOLDER} are not those of this package; reinstall it.")
    return images, labels


def digest(images: np.ndarray, labels: np.ndarray) -> str:
    """Compute the SHA-256 of pixels, followed by labels."""
    return hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
