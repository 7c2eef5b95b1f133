"""The images that come with this package: handwritten digits."""

import functools
import pathlib

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from l2l_jax.data.records import Record, SplitName

FILE = pathlib.Path(__file__).with_suffix(".safetensors")
"""Scans (counts from 0 to 16), labels and which are test images; a copy, for scikit-learn takes a second to
load and may split the images otherwise in another version."""


class DigitsSource:
    """1,797 handwritten digits, those of scikit-learn's `load_digits` (Alpaydin & Kaynak 1998, UCI).

    Real 8×8 scans, enlarged bicubically and repeated over 3 channels. One image in four of every
    class, always the same ones, is a test image.
    """

    class_names = tuple("0123456789")

    def __init__(self, split: SplitName, image_size: int):
        _, labels, indices = _scans()
        self._indices = indices[split]
        self.labels = labels[self._indices]
        self._images = _enlarged(split, image_size)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        name = f"digits/{self._indices[index]}"
        return {"image": self._images[index], "label": int(self.labels[index]), "name": name}


@functools.cache
def _scans() -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """All scans, their labels, and the indices of each split."""
    digits = load_file(FILE)
    test = digits["test"]
    indices = {"train": np.flatnonzero(~test), "test": np.flatnonzero(test)}
    return digits["scans"], digits["labels"].astype(np.int64), indices


@functools.lru_cache(maxsize=8)
def _enlarged(split: SplitName, size: int) -> np.ndarray:
    scans, _, indices = _scans()
    images = np.stack([_enlarge(scans[index], size) for index in indices[split]])
    images.flags.writeable = False  # all sources share them
    return images


def _enlarge(scan: np.ndarray, size: int) -> np.ndarray:
    picture = Image.fromarray((scan / 16).astype(np.float32))
    enlarged = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))
    return np.repeat(np.clip(enlarged, 0, 1)[..., None], 3, axis=-1)
