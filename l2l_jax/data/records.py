"""Random-access sources of labeled images, and views of other sources; see `l2l_jax.data.decoding`."""

import abc
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NotRequired, TypedDict

import numpy as np

SplitName = Literal["train", "validation", "test"]


class Record(TypedDict):
    """One image with its class id and a name that identifies it.

    `image` is the encoded file (JPEG, PNG, …) or an array `[height, width, channel]`, uint8 or float32 in
    [0, 1]. `mark` is the number of a canary's mark, see `l2l_jax.data.canaries`.
    """

    image: bytes | np.ndarray
    label: int
    name: str
    mark: NotRequired[int]


class Source(abc.ABC):
    """A picklable random-access source of labeled images.

    Records that cannot be read raise OSError.
    """

    class_names: Sequence[str]  # names by class id
    labels: np.ndarray  # class ids of all records `[record]`, available without decoding images
    paths: np.ndarray | None = None  # names that determine held-out images; None uses indices
    passed_over: str = ""  # description of skipped files

    def __len__(self) -> int:
        return len(self.labels)

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Record: ...

    def name(self, index: int) -> str:
        """Return the name of an image without reading it."""
        return f"image {index}"

    def key(self, index: int) -> bytes:
        """Return bytes that identify an image independently of its storage location."""
        return str(index).encode()


class ArraySource(Source):
    """Images in memory, `[image, height, width]` or `[image, height, width, 1 or 3]`.

    They are uint8 or float32 in [0, 1]. Grayscale images are repeated over 3 channels when they are read.
    Records are named `name/number`, with numbers from `numbers` or 0, 1, ….
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


class _View(Source):
    """A view of records of other sources."""

    @abc.abstractmethod
    def _locate(self, index: int) -> tuple[Source, int]: ...

    def __getitem__(self, index: int) -> Record:
        source, place = self._locate(index)
        return {**source[place], "label": int(self.labels[index])}

    def name(self, index: int) -> str:
        source, place = self._locate(index)
        return source.name(place)

    def key(self, index: int) -> bytes:
        source, place = self._locate(index)
        return source.key(place)


class Subset(_View):
    """Some records of a source, in the order of `indices`."""

    def __init__(self, source: Source, indices: np.ndarray):
        self._source, self.indices = source, np.asarray(indices)
        self.class_names, self.passed_over = source.class_names, source.passed_over
        self.labels = np.asarray(source.labels)[self.indices]
        self.paths = None if source.paths is None else source.paths[self.indices]

    def _locate(self, index: int) -> tuple[Source, int]:
        return self._source, int(self.indices[index])


def evenly_spaced(source: Source, most: int) -> Source:
    """Return the source, or `most` evenly spaced records if it has more."""
    if len(source) <= most:
        return source
    return Subset(source, np.linspace(0, len(source) - 1, most).astype(int))


class Mixture(_View):
    """Records of several named sources, in proportion to positive weights.

    The length is the smallest that holds every record at least once; records of sources that are too small
    for their weight are repeated. Class ids are numbered consecutively and named `source/class`.
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
        repeated = zip(self._sources, counts, first[:-1], strict=True)
        labels = [np.resize(np.asarray(source.labels, np.int32), n) + start for source, n, start in repeated]
        self.labels = np.concatenate(labels)

    def _locate(self, index: int) -> tuple[Source, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[number - 1]) if number else 0
        return self._sources[number], (index - start) % len(self._sources[number])


def hold_out(
    labels: np.ndarray, share: float, *, held: bool, names: Iterable[bytes] | None = None
) -> np.ndarray:
    """Return the ascending indices of the images held out for testing or, if not `held`, of the others.

    In each class, the fraction `share` of images with the smallest checksums of their names is held out: at
    least one, unless the class has only one. The choice depends only on the names (or indices, if None). It
    is therefore the same on every machine, and changes little when images are added.
    """
    named = [b"%d" % i for i in range(len(labels))] if names is None else names
    checksums = np.fromiter(map(zlib.crc32, named), np.uint32)
    order = np.lexsort((np.arange(len(labels)), checksums, labels))
    _, first, counts = np.unique(np.asarray(labels)[order], return_index=True, return_counts=True)
    rank = np.arange(len(labels)) - np.repeat(first, counts)
    most = np.maximum(np.rint(share * counts), 1)
    most[counts == 1] = 0
    return np.sort(order[(rank < np.repeat(most, counts)) == held])
