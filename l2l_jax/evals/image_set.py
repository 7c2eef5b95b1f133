"""Test images, decoded block by block, because a test set of photographs may not fit in memory."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from l2l_jax.data.bad_images import BadImages
from l2l_jax.data.reading import BadImage, Reader, Row
from l2l_jax.data.records import Source
from l2l_jax.data.transforms import Transform, TransformConfig, in_range
from l2l_jax.evals.config import EvaluationSetup
from l2l_jax.utils.threads import DaemonPool

SHOWN_CLASSES = 10  # maximum number of classes per set with example images; evenly spaced
THREADS, CHUNK = 4, 16  # number of decoding threads, and of images that a thread reads at a time


class Images(NamedTuple):
    """Images of a set, float32 `[image, height, width, channel]`, with their indices in it and class IDs."""

    indices: np.ndarray
    images: np.ndarray
    labels: np.ndarray


class Block(NamedTuple):
    """Consecutive images of a set: decodable images, and the errors of other images by name.

    `digest` is the SHA-256 of the decoded images, their labels and indices.
    """

    number: int
    size: int
    good: Images
    skipped: dict[str, str]
    digest: str


class ImageSet:
    """Images of a source, decoded on demand; images that cannot be decoded are left out.

    Args:
      setup: Config of the experiment; images are preprocessed like its test images.
      source: Source of the images.
      name: Name of the set in messages.
      transform: Transform to use instead of the experiment's.

    Attributes:
      skipped: Reasons why images were left out, by name; complete once all blocks are read.
    """

    def __init__(
        self, setup: EvaluationSetup, source: Source, name: str, transform: TransformConfig | None = None
    ):
        squares = Transform(transform or setup.data, setup.model.image_size, training=False)
        self.source, self.labels = source, np.asarray(source.labels)
        self._reader = Reader([source], [squares], seed=0)
        self._blank = np.zeros(squares.shape, np.uint8)
        self._value_range, self._name = setup.model.value_range, name
        self._limits = BadImages(None, {name: len(source)}, setup.data.max_bad_fraction)
        self.skipped: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def blocks(self, size: int, share: slice = slice(None)) -> Iterator[Block]:
        """Yield all blocks of `size` images or a share; the next block is decoded in the background."""
        numbers = range(-(-len(self) // size))[share]

        def read(number: int) -> Block:
            indices = np.arange(number * size, min((number + 1) * size, len(self)))
            return Block(number, len(indices), *self._read(indices))

        with DaemonPool(1) as ahead:
            following = None
            for number in [*numbers, None]:
                current, following = following, None if number is None else ahead.submit(read, number)
                if current is not None:
                    block = current.result()
                    self.skip(block.skipped)
                    yield block

    def read(self, indices: Sequence[int] | np.ndarray) -> Images:
        """Return the images at the given indices, without those that cannot be decoded."""
        good, skipped, _ = self._read(np.asarray(indices))
        self.skip(skipped)
        return good

    def _read(self, indices: np.ndarray) -> tuple[Images, dict[str, str], str]:
        """Return the decodable images, the errors of other images by name, and the digest of all."""
        rows = [Row(0, int(i), 0) for i in indices]
        with DaemonPool(THREADS) as pool:
            parts = pool.map(self._reader.read, [rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)])
        squares = [square for part in parts for square in part]
        bad = [isinstance(square, BadImage) for square in squares]
        good = np.flatnonzero(np.logical_not(bad))
        blank = np.zeros_like(squares[good[0]]) if len(good) else self._blank
        pixels = np.stack([blank if isinstance(square, BadImage) else square for square in squares])
        labels = self.labels[indices[good]]
        digest = hashlib.sha256(pixels.tobytes())
        digest.update(np.asarray(labels, np.int64).tobytes())
        digest.update(np.asarray(indices[good], np.int64).tobytes())
        images = Images(indices[good], in_range(pixels[good], self._value_range), labels)
        skipped = dict(square for square in squares if isinstance(square, BadImage))
        return images, skipped, digest.hexdigest()

    def first_of_each_class(self, per_class: int) -> Images:
        """Return the first images of each class, for at most `SHOWN_CLASSES` classes."""
        classes = np.unique(self.labels)
        if len(classes) > SHOWN_CLASSES:
            classes = classes[np.linspace(0, len(classes) - 1, SHOWN_CLASSES).astype(int)]
        blocks = []
        for class_id in classes:
            members, missing = np.flatnonzero(self.labels == class_id), per_class
            while len(members) and missing:
                blocks.append(self.read(members[:missing]))
                members, missing = members[missing:], missing - len(blocks[-1].labels)
        return Images(*map(np.concatenate, zip(*blocks, strict=True)))

    def skip(self, bad: Mapping[str, str]) -> None:
        """Record images that could not be decoded, as reasons by name."""
        self.skipped.update(bad)
        self._limits.record(self._name, [BadImage(name, reason) for name, reason in bad.items()])
