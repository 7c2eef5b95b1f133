"""Test images, decoded block by block: a test set of photographs may be larger than the memory."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from l2l_jax.data.bad_images import BadImages
from l2l_jax.data.reading import BadImage, Reader, Row
from l2l_jax.data.records import Source
from l2l_jax.data.transforms import Transform, in_range

SHOWN_CLASSES = 10
"""Classes of a set in a picture, at most; evenly spaced."""


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
      first: the place of the first in the set.
      good: those that can be decoded.
      padded: all, the others being blank, so that every image keeps its place.
    """

    first: int
    good: Images
    padded: np.ndarray

    @property
    def places(self) -> np.ndarray:
        """The places of the good images in the block."""
        return self.good.indices - self.first


class ImageSet:
    """Images of a source that are decoded when they are asked for; those that cannot be are left out.

    Args:
      source: the images.
      transform: how they become squares.
      value_range: of the images returned.
      max_bad_fraction: share of the images that may be impossible to decode.
      name: of the set, in messages.
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
        self.labels = np.asarray(source.labels)
        self._reader = Reader([source], [transform], seed=0)
        self._value_range, self._name = value_range, name
        self._limits = BadImages(None, {name: len(source)}, max_bad_fraction)
        self.skipped: dict[str, str] = {}
        """Why images were left out, by their names; complete once all blocks were read."""

    def __len__(self) -> int:
        return len(self.labels)

    def blocks(self, size: int) -> Iterator[Block]:
        """All images, `size` at a time.

        Raises:
          UserError: more than `max_bad_fraction` of the set cannot be decoded.
        """
        for first in range(0, len(self), size):
            indices = np.arange(first, min(first + size, len(self)))
            good = self.read(indices)
            padded = good.images
            if len(padded) < len(indices):
                padded = np.zeros((len(indices), *good.images.shape[1:]), np.float32)
                padded[good.indices - first] = good.images
            yield Block(first, good, padded)

    def read(self, indices: Sequence[int] | np.ndarray) -> Images:
        """Those of some images that can be decoded."""
        indices = np.asarray(indices)
        read = self._reader.read([Row(0, int(i), 0) for i in indices])
        self._skip(read.bad.values())
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

    def _skip(self, bad: Iterable[BadImage]) -> None:
        found = list(bad)
        self.skipped.update({image.name: image.reason for image in found})
        self._limits.record(self._name, found)
