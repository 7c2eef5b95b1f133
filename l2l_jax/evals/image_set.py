"""Test images, decoded block by block: a test set of photographs may be larger than the memory."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from l2l_jax.data.reading import BadImage, BadImages, Reader, Row
from l2l_jax.data.records import Source
from l2l_jax.data.transforms import Transform, TransformConfig, in_range
from l2l_jax.evals.config import EvaluationSetup
from l2l_jax.utils.threads import DaemonPool

SHOWN_CLASSES = 10
"""Classes of a set in a picture, at most; evenly spaced."""

THREADS, CHUNK = 4, 16
"""Threads that decode, and images that one reads at a time."""


class Images(NamedTuple):
    """Some images of a set, float32 `[image, height, width, channel]`, with places in it and class ids."""

    indices: np.ndarray
    images: np.ndarray
    labels: np.ndarray


class Block(NamedTuple):
    """Neighboring images of a set: those that can be decoded, and why others cannot, by their names.

    `digest` is the SHA-256 of the decoded images, their labels and places.
    """

    number: int
    size: int
    good: Images
    skipped: dict[str, str]
    digest: str


class ImageSet:
    """Images of a source, decoded on demand; those that cannot be decoded are left out.

    Args:
      source: The images.
      transform: Makes them squares.
      value_range: Range of the pixels returned.
      max_bad_fraction: Share of the images that may be impossible to decode.
      name: Name of the set in messages.
    """

    def __init__(
        self,
        source: Source,
        transform: Transform,
        value_range: tuple[float, float],
        *,
        max_bad_fraction: float = 0.0,
        name: str = "test",
    ):
        self.source, self.labels = source, np.asarray(source.labels)
        self._reader = Reader([source], [transform], seed=0)
        self._value_range, self._name = value_range, name
        self._limits = BadImages(None, {name: len(source)}, max_bad_fraction)
        self.skipped: dict[str, str] = {}
        """Why images were left out, by their names; complete once all blocks were read."""

    @classmethod
    def of(
        cls, setup: EvaluationSetup, source: Source, name: str, transform: TransformConfig | None = None
    ) -> "ImageSet":
        """Prepare the images of a source as an experiment's test images, or with another transform."""
        squares = Transform(transform or setup.data, setup.model.image_size, training=False)
        most = setup.data.max_bad_fraction
        return cls(source, squares, setup.model.value_range, max_bad_fraction=most, name=name)

    def __len__(self) -> int:
        return len(self.labels)

    def blocks(self, size: int, share: slice = slice(None)) -> Iterator[Block]:
        """Yield `size` images at a time, of all blocks or a share; the next block is decoded meanwhile.

        Raises:
          UserError: More than `max_bad_fraction` of the set cannot be decoded.
        """
        numbers = range(-(-len(self) // size))[share]
        with DaemonPool(1) as ahead:
            started = [ahead.submit(self._block, number, size) for number in numbers[:1]]
            for following in (*numbers[1:], None):
                if not started:
                    return
                block = started.pop().result()
                if following is not None:
                    started.append(ahead.submit(self._block, following, size))
                self.skip(block.skipped)
                yield block

    def _block(self, number: int, size: int) -> Block:
        indices = np.arange(number * size, min((number + 1) * size, len(self)))
        return Block(number, len(indices), *self._read(indices))

    def read(self, indices: Sequence[int] | np.ndarray) -> Images:
        """Return those of some images that can be decoded."""
        good, skipped, _ = self._read(np.asarray(indices))
        self.skip(skipped)
        return good

    def _read(self, indices: np.ndarray) -> tuple[Images, dict[str, str], str]:
        """Return the images that can be decoded, why others cannot, and the digest of all."""
        rows = [Row(0, int(i), 0) for i in indices]
        chunks = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
        with DaemonPool(THREADS) as pool:
            parts = pool.map(self._reader.read, chunks)
        pixels = np.concatenate([part.images for part in parts])
        bad = {
            number * CHUNK + row: image
            for number, part in enumerate(parts)
            for row, image in part.bad.items()
        }
        good = np.setdiff1d(np.arange(len(rows)), [*bad]).astype(int)
        labels = self.labels[indices[good]]
        digest = hashlib.sha256(pixels.tobytes())
        digest.update(np.asarray(labels, np.int64).tobytes())
        digest.update(np.asarray(indices[good], np.int64).tobytes())
        images = Images(indices[good], in_range(pixels[good], self._value_range), labels)
        return images, {image.name: image.reason for image in bad.values()}, digest.hexdigest()

    def first_of_each_class(self, per_class: int) -> Images:
        """Return the first images of each class, of `SHOWN_CLASSES` classes at most."""
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
        """Note images that could not be decoded, with the reason by name.

        Raises:
          UserError: There are too many.
        """
        self.skipped.update(bad)
        self._limits.record(self._name, [BadImage(name, reason) for name, reason in bad.items()])
