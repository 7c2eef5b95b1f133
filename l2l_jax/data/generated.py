"""Images without a camera: noise, and what a model makes of it.

Nothing here loads JAX: worker processes import this module.
"""

import functools
import pathlib
from collections.abc import Sequence

import numpy as np

from l2l_jax.data.records import Record

EXPONENTS = (0.5, 3.5)
"""Range of the exponents a and b of noise whose amplitude falls as 1 / (|fx|^a + |fy|^b)."""


class NoiseImages:
    """Color noise with the spectra of photographs, which falls off with the frequency.

    The "spectrum" images of "Learning to See by Looking at Noise" (Baradad et al., NeurIPS 2021), each
    stretched to [0, 1].

    Args:
      count: Number of images.
      size: Side in pixels.
      seed: Seed of the images; each depends on its number, too.
    """

    class_names: Sequence[str] = ("noise",)

    def __init__(self, count: int, size: int, seed: int):
        self._size, self._seed = size, seed
        self.labels = np.zeros(count, int)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        image = spectrum_noise(np.random.default_rng([self._seed, index]), self._size)
        return {"image": image, "label": 0, "name": f"noise/{index}"}


def spectrum_noise(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw an image `[size, size, 3]` of `NoiseImages`, float32."""
    a, b = rng.uniform(*EXPONENTS, 2)
    frequency = np.abs(np.fft.fftfreq(size)) * size
    with np.errstate(divide="ignore"):
        amplitude = 1 / (frequency[None, :] ** a + frequency[:, None] ** b)
    amplitude[0, 0] = 0
    white = np.fft.fft2(rng.standard_normal((3, size, size)))
    noise = np.fft.ifft2(white * amplitude).real
    low, high = noise.min(), noise.max()
    return np.moveaxis((noise - low) / (high - low), 0, -1).astype(np.float32)


class GeneratedImages:
    """Images in an array file; can be pickled, and is read where it is needed.

    Args:
      path: NumPy file `[image, height, width, channel]`, uint8.
      count: Number of images, from the first.
    """

    class_names: Sequence[str] = ("generated",)

    def __init__(self, path: pathlib.Path, count: int):
        self._path = path
        self.labels = np.zeros(count, int)

    @functools.cached_property
    def _images(self) -> np.ndarray:
        return np.load(self._path, mmap_mode="r")

    def __getstate__(self):
        return {"_path": self._path, "labels": self.labels}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        image = self._images[index].astype(np.float32) / np.float32(255)
        return {"image": image, "label": 0, "name": f"generated/{index}"}
