"""Reading and transforming rows of sets, in this process or in worker processes.

Nothing here loads JAX: worker processes import this module.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from l2l_jax.data.decoding import ImageError
from l2l_jax.data.transforms import Transform

if TYPE_CHECKING:
    from l2l_jax.data.records import Source


class Row(NamedTuple):
    """An image that is wanted: number of the set, index in it, and the epoch, which decides its crop."""

    of: int
    index: int
    epoch: int


class BadImage(NamedTuple):
    """An image that could not be decoded: its name, and why."""

    name: str
    reason: str


class Rows(NamedTuple):
    """What was read.

    Attributes:
      images: `[row, size, size, channel]`, uint8, or float32 in [0, 1]; zeros where an image is bad.
      bad: the bad images by row.
    """

    images: np.ndarray
    bad: dict[int, BadImage]


class Reader:
    """Reads rows of sets; can be pickled.

    Args:
      sources: of the sets, by their number.
      transforms: of the sets, by their number; None: the images are arrays and stay as they are.
      seed: of the choices that the transforms make.
    """

    def __init__(self, sources: Iterable["Source"], transforms: Iterable[Transform | None], seed: int):
        self._sources, self._transforms, self._seed = tuple(sources), tuple(transforms), seed

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """`(height, width, channel)` of the images; None if they stay as they are."""
        return None if self._transforms[0] is None else self._transforms[0].shape

    def read(self, rows: Sequence[Row]) -> Rows:
        """The rows, transformed. All images must come from files, or none."""
        squares: list[np.ndarray | None] = []
        bad: dict[int, BadImage] = {}
        for number, (of, index, epoch) in enumerate(rows):
            source, square = self._sources[of], None
            try:
                record = source[index]
            except OSError as error:
                bad[number] = BadImage(str(getattr(error, "filename", None) or f"record {index}"), str(error))
            else:
                try:
                    square = self._transform(of, record["image"], (self._seed, of, epoch, index))
                except ImageError as error:
                    bad[number] = BadImage(record["name"], str(error))
            squares.append(square)
        if not bad:
            return Rows(np.stack(squares), bad)
        good = [square for square in squares if square is not None]
        blank = np.zeros_like(good[0]) if good else np.zeros(self.shape or (1, 1, 1), np.uint8)
        return Rows(np.stack([blank if square is None else square for square in squares]), bad)

    def _transform(self, of: int, image: bytes | np.ndarray, seed: tuple[int, ...]) -> np.ndarray:
        transform = self._transforms[of]
        return image if transform is None else transform(image, seed)
