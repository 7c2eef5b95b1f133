"""Test images, decoded block by block: a test set of photographs may be larger than the memory."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from l2l_jax.data.reading import BadImage, BadImages, Reader, Row, Rows
from l2l_jax.data.records import Source
from l2l_jax.data.transforms import Transform, TransformConfig, in_range
from l2l_jax.evals.config import EvaluationSetup

SHOWN_CLASSES = 10
"""Classes of a set in a picture, at most; evenly spaced."""

CHUNK = 16
"""Images that a thread reads at a time."""


class Images(NamedTuple):
    """Some images of a set.

    Attributes:
      indices: their places in the set `[image]`.
      images: `[image, height, width, channel]`, float32 in the model's range.
      labels: their class ids `[image]`.
    """

    indices: np.ndarray
    images: np.ndarray
    labels: np.ndarray


class Block(NamedTuple):
    """Neighbouring images of a set.

    Attributes:
      number: of the block in its set.
      size: how many images it has.
      good: those that can be decoded.
      skipped: why the others cannot, by their names.
      digest: SHA-256 of the decoded images, their labels and places.
    """

    number: int
    size: int
    good: Images
    skipped: dict[str, str]
    digest: str


class ImageSet:
    """Images of a source that are decoded when they are asked for; those that cannot be are left out.

    Args:
      source: the images.
      transform: how they become squares.
      value_range: of the images returned.
      max_bad_fraction: share of the images that may be impossible to decode.
      name: of the set, in messages.
      threads: how many threads decode.
    """

    def __init__(
        self,
        source: Source,
        transform: Transform,
        value_range: tuple[float, float],
        *,
        max_bad_fraction: float = 0.0,
        name: str = "test",
        threads: int = 4,
    ):
        self.labels = np.asarray(source.labels)
        self._reader = Reader([source], [transform], seed=0)
        self._value_range, self._name, self._threads = value_range, name, threads
        self._limits = BadImages(None, {name: len(source)}, max_bad_fraction)
        self.skipped: dict[str, str] = {}
        """Why images were left out, by their names; complete once all blocks were read."""

    @classmethod
    def of(
        cls, setup: EvaluationSetup, source: Source, name: str, transform: TransformConfig | None = None
    ) -> "ImageSet":
        """The images of a source, prepared as the experiment's test images are.

        Args:
          setup: model and data preparation.
          source: the images.
          name: of the set, in messages.
          transform: another preparation than `config.data`'s.
        """
        how = Transform(transform or setup.data, setup.model.image_size, training=False)
        most = setup.data.max_bad_fraction
        return cls(source, how, setup.model.value_range, max_bad_fraction=most, name=name)

    def __len__(self) -> int:
        return len(self.labels)

    def blocks(self, size: int, share: slice = slice(None)) -> Iterator[Block]:
        """The images, `size` at a time; the next block is decoded while one is worked on.

        Args:
          size: images of a block.
          share: which of the blocks, by their numbers: all, or those of this process.

        Raises:
          UserError: more than `max_bad_fraction` of the set cannot be decoded.
        """
        numbers = range(-(-len(self) // size))[share]
        with ThreadPoolExecutor(1) as ahead:
            next_block = ahead.submit(self._block, numbers[0], size) if numbers else None
            for following in (*numbers[1:], None):
                if next_block is None:
                    return
                block = next_block.result()
                next_block = None if following is None else ahead.submit(self._block, following, size)
                self.skip(block.skipped)
                yield block

    def _block(self, number: int, size: int) -> Block:
        indices = np.arange(number * size, min((number + 1) * size, len(self)))
        read = self._read(indices)
        good = self._good(indices, read)
        digest = hashlib.sha256(read.images.tobytes())
        digest.update(np.asarray(good.labels, np.int64).tobytes())
        digest.update(np.asarray(good.indices, np.int64).tobytes())
        skipped = {image.name: image.reason for image in read.bad.values()}
        return Block(number, len(indices), good, skipped, digest.hexdigest())

    def read(self, indices: Sequence[int] | np.ndarray) -> Images:
        """Those of some images that can be decoded."""
        indices = np.asarray(indices)
        read = self._read(indices)
        self.skip({image.name: image.reason for image in read.bad.values()})
        return self._good(indices, read)

    def _read(self, indices: np.ndarray) -> Rows:
        rows = [Row(0, int(i), 0) for i in indices]
        chunks = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
        if len(chunks) < 2:
            return self._reader.read(rows)
        with ThreadPoolExecutor(self._threads) as pool:
            parts = list(pool.map(self._reader.read, chunks))
        bad = {
            first + row: image
            for first, part in zip(range(0, len(rows), CHUNK), parts, strict=True)
            for row, image in part.bad.items()
        }
        return Rows(np.concatenate([part.images for part in parts]), bad)

    def _good(self, indices: np.ndarray, read: Rows) -> Images:
        good = np.array([row for row in range(len(indices)) if row not in read.bad], int)
        images = in_range(read.images[good], self._value_range)
        return Images(indices[good], images, self.labels[indices[good]])

    def first_of_each_class(self, per_class: int) -> Images:
        """The first images of each class, of `SHOWN_CLASSES` classes at most."""
        classes = np.unique(self.labels)
        if len(classes) > SHOWN_CLASSES:
            classes = classes[np.linspace(0, len(classes) - 1, SHOWN_CLASSES).astype(int)]
        blocks = []
        for class_id in classes:
            members, taken = np.flatnonzero(self.labels == class_id), 0
            while len(members) and taken < per_class:
                missing = per_class - taken
                blocks.append(self.read(members[:missing]))
                members, taken = members[missing:], taken + len(blocks[-1].labels)
        return Images(*map(np.concatenate, zip(*blocks, strict=True)))

    def skip(self, bad: Mapping[str, str]) -> None:
        """Note images that could not be decoded, by name, with the reason.

        Raises:
          UserError: there are too many by now.
        """
        self.skipped.update(bad)
        self._limits.record(self._name, [BadImage(name, reason) for name, reason in bad.items()])
