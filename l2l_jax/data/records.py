"""What an image source is, and sources made of others.

A source is anything with a length, `class_names`, `labels` (one class id per record, known without
decoding an image) and records `{"image": …, "label": …, "name": …}`. `l2l_jax.data.decoding` decodes.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Protocol, TypedDict

import numpy as np

SplitName = Literal["train", "validation", "test"]


class Record(TypedDict):
    """One image, its class id, and a name that finds it again.

    `image` is the encoded file (JPEG, PNG, …), or an array `[height, width, channel]`: uint8, or float32 in
    [0, 1].
    """

    image: bytes | np.ndarray
    label: int
    name: str


class Source(Protocol):
    """Random access to labeled images; it can be pickled, for worker processes.

    Records that cannot be read raise OSError. A source may also have `name(index)`, the name of an
    image that is not read, and `key(index)`, bytes that identify it (see `image_key`).
    """

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the class ids."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """Class ids of all records `[record]`."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


def image_name(source: Source, index: int) -> str:
    """Return the name of an image without reading it, as far as the source knows it."""
    name = getattr(source, "name", None)
    return f"image {index}" if name is None else name(index)


def image_key(source: Source, index: int) -> bytes:
    """Return what identifies an image, wherever it is stored: by default its index."""
    key = getattr(source, "key", None)
    return str(index).encode() if key is None else key(index)


class ArraySource:
    """Images in memory.

    Args:
      images: `[image, height, width]` or `[image, height, width, 1 or 3]`, uint8, or float32 in [0, 1]. Gray
        images are repeated over 3 channels when they are read.
      labels: Class ids.
      class_names: Names of the class ids.
      name: Prefix of the records' names.
      numbers: Numbers in the records' names; None: 0, 1, ….
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        class_names: Sequence[str],
        name: str = "image",
        numbers: Sequence[int] | np.ndarray | None = None,
    ):
        self._images, self.labels, self.class_names = images, np.asarray(labels, np.int64), tuple(class_names)
        self._name, self._numbers = name, range(len(labels)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        image = self._images[index]
        if image.ndim == 2 or image.shape[-1] == 1:
            image = np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=-1)
        return {"image": image, "label": int(self.labels[index]), "name": self.name(index)}

    def name(self, index: int) -> str:
        """Return the name of an image."""
        return f"{self._name}/{self._numbers[index]}"

    def key(self, index: int) -> bytes:
        """Return the pixels of an image."""
        return self._images[index].tobytes()


class Subset:
    """Some records of a source, in the order of `indices`."""

    def __init__(self, source: Source, indices: np.ndarray):
        self._source, self._indices = source, np.asarray(indices)
        self.class_names, self.passed_over = source.class_names, getattr(source, "passed_over", "")
        self.labels = np.asarray(source.labels)[self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Record:
        return self._source[int(self._indices[index])]

    def name(self, index: int) -> str:
        """Return the name of an image without reading it."""
        return image_name(self._source, int(self._indices[index]))

    def key(self, index: int) -> bytes:
        """Return what identifies an image."""
        return image_key(self._source, int(self._indices[index]))


def evenly_spaced(source: Source, most: int) -> Source:
    """Return the source, or `most` of its records if it has more."""
    if len(source) <= most:
        return source
    return Subset(source, np.linspace(0, len(source) - 1, most).astype(int))


class Mixture:
    """Records of several sources in proportion to weights.

    As long as it takes to hold every record at least once; the records of sources that are short for
    their weight repeat. The classes of the sources are counted through, and named `source/class`.

    Args:
      sources: Sources by name.
      weights: Weight of each, positive.
    """

    def __init__(self, sources: Mapping[str, Source], weights: Sequence[float]):
        self._sources = tuple(sources.values())
        shares = np.asarray(weights) / np.sum(weights)
        lengths = np.array([len(source) for source in self._sources])
        total = np.max(lengths / shares)
        self._ends = np.cumsum(np.maximum(np.rint(shares * total).astype(np.int64), lengths))
        counts = np.diff(self._ends, prepend=0)
        self.class_names = [f"{name}/{c}" for name, source in sources.items() for c in source.class_names]
        first = np.cumsum([0, *(len(source.class_names) for source in self._sources)])
        self._first_class = first[:-1]
        parts = zip(self._sources, counts, self._first_class, strict=True)
        self.labels = np.concatenate(
            [np.resize(np.asarray(source.labels, np.int32), n) + first for source, n, first in parts]
        )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Record:
        which, place = self._place(index)
        record = self._sources[which][place]
        return {**record, "label": record["label"] + int(self._first_class[which])}

    def name(self, index: int) -> str:
        """Return the name of an image without reading it."""
        which, place = self._place(index)
        return image_name(self._sources[which], place)

    def key(self, index: int) -> bytes:
        """Return what identifies an image."""
        which, place = self._place(index)
        return image_key(self._sources[which], place)

    def _place(self, index: int) -> tuple[int, int]:
        which = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[which - 1]) if which else 0
        return which, (index - start) % len(self._sources[which])


def held_out(names: Iterable[bytes], labels: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the images that stay, and of those that are held out, both ascending.

    Of each class the images whose names have the smallest checksums are held out: at least one,
    unless there is only one image. The choice depends on the names alone, so it is the same on
    every machine, and images that are added later change little of it.

    Args:
      names: Names of the images.
      labels: Their class ids.
      share: Share of the images to hold out, between 0 and 1.
    """
    checksums = np.fromiter(map(zlib.crc32, names), np.uint32)
    order = np.lexsort((np.arange(len(labels)), checksums, labels))
    _, first, counts = np.unique(np.asarray(labels)[order], return_index=True, return_counts=True)
    rank = np.arange(len(labels)) - np.repeat(first, counts)
    held = np.maximum(np.rint(share * counts), 1)
    held[counts == 1] = 0
    is_held = rank < np.repeat(held, counts)
    return np.sort(order[~is_held]), np.sort(order[is_held])
