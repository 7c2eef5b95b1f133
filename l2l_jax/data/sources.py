"""Image sources: random access to labelled images that are not decoded yet.

A source is anything with a length, `class_names`, `labels` (one class id per record, known without
decoding an image) and records `{"image": …, "label": …, "name": …}`. `l2l_jax.data.decoding` decodes.
"""

from collections.abc import Sequence
from typing import Literal, Protocol, TypedDict

import numpy as np

from l2l_jax.data.config import SourceConfig
from l2l_jax.errors import UserError

Split = Literal["train", "test"]


class Record(TypedDict):
    """One image, its class id, and a name that finds it again.

    `image` is the encoded file (JPEG, PNG, …), or float32 `[height, width, channel]` in [0, 1] from
    sources whose images are no files.
    """

    image: bytes | np.ndarray
    label: int
    name: str


class Source(Protocol):
    """Random access to labelled images; it can be pickled, for worker processes.

    Records that cannot be read raise OSError.
    """

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


class Mixture:
    """Records of several sources in proportion to weights.

    As long as it takes to hold every record at least once; the records of sources that are short for
    their weight repeat. The classes of the sources are counted through, and named `source/class`.

    Args:
      sources: sources by name.
      weights: weight of each, positive.
    """

    def __init__(self, sources: dict[str, Source], weights: Sequence[float]):
        self._sources = tuple(sources.values())
        shares = np.asarray(weights) / np.sum(weights)
        lengths = np.array([len(source) for source in self._sources])
        total = np.max(lengths / shares)
        self._ends = np.cumsum(np.maximum(np.rint(shares * total).astype(np.int64), lengths))
        counts = np.diff(self._ends, prepend=0)
        self.class_names = [f"{name}/{c}" for name, source in sources.items() for c in source.class_names]
        first = np.cumsum([0, *(len(source.class_names) for source in self._sources)])
        self._first_class = first[:-1]
        self.labels = np.concatenate([
            np.resize(np.asarray(source.labels, np.int32), count) + offset
            for source, count, offset in zip(self._sources, counts, self._first_class, strict=True)
        ])  # fmt: skip

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Record:
        which = int(np.searchsorted(self._ends, index, side="right"))
        source = self._sources[which]
        start = int(self._ends[which - 1]) if which else 0
        record = source[(index - start) % len(source)]
        return {**record, "label": record["label"] + int(self._first_class[which])}


def open_source(config: SourceConfig, split: Split, image_size: int) -> Source:
    """The training or test images of a source.

    Args:
      config: which source.
      split: "train" or "test".
      image_size: side in pixels of the images that are no files (the digits).

    Raises:
      UserError: no such source, or it is not where `config.path` says, or holds no images.
    """
    try:
        return _opened(config, split, image_size)
    except OSError as error:
        place = error.filename or config.path
        raise UserError(f"{config.where}: {place} cannot be read ({error.strerror or error}).") from error


def _opened(config: SourceConfig, split: Split, image_size: int) -> Source:
    if config.source == "digits":
        if config.path:
            raise UserError(
                f"{config.where}.path is {config.path!r}, but the source 'digits' reads no files; images of "
                "your own are the source 'folder' or 'csv'."
            )
        return DigitsSource(split, image_size)
    if config.source == "folder":
        from l2l_jax.data.files import open_folder

        return open_folder(config, split)
    if config.source == "csv":
        from l2l_jax.data.files import open_csv

        return open_csv(config, split)
    from l2l_jax.data.tfds_source import open_tfds

    return open_tfds(config, split)
