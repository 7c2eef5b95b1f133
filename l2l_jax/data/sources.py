"""Image sources: random access to labelled images.

A source is anything with a length, `class_names`, `labels` (one class id per record, known without
decoding an image) and records `{"image": …, "label": …, "name": …}`. Images are float32
`[height, width, channel]` in [0, 1]; `l2l_jax.data.pipeline` brings them into the model's range.
"""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, TypedDict

import numpy as np

from l2l_jax.errors import UserError

Split = Literal["train", "test"]


class Record(TypedDict):
    """One image `[height, width, channel]` in [0, 1], its class id and a name that finds it again."""

    image: np.ndarray
    label: int
    name: str


class Source(Protocol):
    """Random access to labelled images."""

    class_names: Sequence[str]
    labels: np.ndarray

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


class DigitsSource:
    """The 1,797 handwritten digits that scikit-learn carries (Alpaydin & Kaynak 1998, UCI).

    Real 8×8 scans, enlarged bicubically and repeated over 3 channels. One image in four of every
    class, always the same ones, is a test image.
    """

    class_names = tuple("0123456789")

    def __init__(self, split: Split, image_size: int):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        train, test = train_test_split(
            np.arange(len(digits.target)), test_size=0.25, stratify=digits.target, random_state=0
        )
        self._indices = np.sort({"train": train, "test": test}[split])
        self.labels = digits.target[self._indices]
        self._images = np.stack([_enlarge(digits.images[i], image_size) for i in self._indices])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        name = f"digits/{self._indices[index]}"
        return {"image": self._images[index], "label": int(self.labels[index]), "name": name}


def _enlarge(scan: np.ndarray, size: int) -> np.ndarray:
    from PIL import Image

    picture = Image.fromarray((scan / 16).astype(np.float32))
    enlarged = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))
    return np.repeat(np.clip(enlarged, 0, 1)[..., None], 3, axis=-1)


SOURCES: dict[str, Callable[[Split, int], Source]] = {"digits": DigitsSource}
"""Sources by the name that `config.data.source` takes: `(split, image_size) -> Source`."""


def open_source(name: str, split: Split, image_size: int) -> Source:
    """The source called `name`.

    Args:
      name: a key of `SOURCES`.
      split: "train" or "test".
      image_size: side of the images in pixels.

    Raises:
      UserError: no such source.
    """
    if name not in SOURCES:
        raise UserError(f"config.data.source is {name!r}; known sources: {', '.join(SOURCES)}")
    return SOURCES[name](split, image_size)


class Subset:
    """Some records of a source, in the order of `indices`."""

    def __init__(self, source: Source, indices: np.ndarray):
        self._source, self._indices = source, np.asarray(indices)
        self.class_names = source.class_names
        self.labels = np.asarray(source.labels)[self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Record:
        return self._source[int(self._indices[index])]
