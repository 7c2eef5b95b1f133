"""The images that need no files: scikit-learn's handwritten digits."""

import functools

import numpy as np
from PIL import Image

from l2l_jax.data.records import Record, Split


class DigitsSource:
    """The 1,797 handwritten digits that scikit-learn carries (Alpaydin & Kaynak 1998, UCI).

    Real 8×8 scans, enlarged bicubically and repeated over 3 channels. One image in four of every
    class, always the same ones, is a test image.
    """

    class_names = tuple("0123456789")

    def __init__(self, split: Split, image_size: int):
        scans, labels, indices = _scans()
        self._indices = np.sort(indices[split])
        self.labels = labels[self._indices]
        self._images = np.stack([_enlarge(scans[i], image_size) for i in self._indices])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        name = f"digits/{self._indices[index]}"
        return {"image": self._images[index], "label": int(self.labels[index]), "name": name}


@functools.cache
def _scans() -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """All scans, their labels, and the indices of each split; reading the text that holds them takes long."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    train, test = train_test_split(
        np.arange(len(digits.target)), test_size=0.25, stratify=digits.target, random_state=0
    )
    return digits.images, digits.target, {"train": train, "test": test}


def _enlarge(scan: np.ndarray, size: int) -> np.ndarray:
    picture = Image.fromarray((scan / 16).astype(np.float32))
    enlarged = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))
    return np.repeat(np.clip(enlarged, 0, 1)[..., None], 3, axis=-1)
