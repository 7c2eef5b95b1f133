"""The images that come with this package: handwritten digits."""

import functools
import pathlib

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from l2l_jax.data.records import ArraySource, SplitName

FILE = pathlib.Path(__file__).with_suffix(".safetensors")
"""Scans (counts from 0 to 16), labels and which are test images; a copy, for scikit-learn takes a second to
load and may split the images otherwise in another version."""


def open_digits(split: SplitName, image_size: int) -> ArraySource:
    """Open 1,797 handwritten digits, those of scikit-learn's `load_digits` (Alpaydin & Kaynak 1998, UCI).

    Real 8×8 scans, enlarged bicubically and repeated over 3 channels. One image in four of every
    class, always the same ones, is a test image.
    """
    return ArraySource(*_enlarged(split, image_size))


@functools.lru_cache(maxsize=8)
def _enlarged(split: SplitName, size: int) -> tuple[np.ndarray, np.ndarray, str, str, np.ndarray]:
    digits = load_file(FILE)
    indices = np.flatnonzero(digits["test"] == (split == "test"))
    images = np.stack([_enlarge(digits["scans"][index], size) for index in indices])
    images.flags.writeable = False  # all sources share them
    return images, digits["labels"][indices], "0123456789", "digits", indices


def _enlarge(scan: np.ndarray, size: int) -> np.ndarray:
    picture = Image.fromarray((scan / 16).astype(np.float32))
    enlarged = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))
    return np.repeat(np.clip(enlarged, 0, 1)[..., None], 3, axis=-1)
