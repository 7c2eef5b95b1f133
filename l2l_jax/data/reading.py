"""Reading and transforming rows of sets, in this process or in worker processes.

Nothing here loads JAX: worker processes import this module.
"""

import json
import logging
import pathlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from l2l_jax.data.decoding import ImageError
from l2l_jax.data.transforms import Transform
from l2l_jax.errors import UserError

if TYPE_CHECKING:
    from l2l_jax.data.records import Source


logger = logging.getLogger(__name__)

SAID = 20
"""Bad images of a set that are named on the console; the list names all."""

SHOWN = 10
"""Bad images that the error names."""


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


class BadImages:
    """The bad images of a stage, by set; what an earlier part of the run or another process found included.

    Each process writes a list of its own, `bad_images.jsonl` or `bad_images-<process>.jsonl`, so that they
    never wait for each other; all are read when one finds another bad image.

    Args:
      folder: of the lists, made when there is something to write; None: no list is kept.
      counts: number of images by name of the set.
      max_fraction: share of a set that may be bad.
      process_index: of this process.
    """

    def __init__(
        self,
        folder: pathlib.Path | None,
        counts: dict[str, int],
        max_fraction: float,
        process_index: int = 0,
    ):
        self._folder, self._counts, self._max_fraction = folder, counts, max_fraction
        self._name = f"bad_images{f'-{process_index}' if process_index else ''}.jsonl"
        self._found: dict[str, dict[str, str]] = {of: {} for of in counts}

    def limit(self, of: str) -> int:
        """How many images of a set may be bad; never all."""
        count = self._counts[of]
        return min(int(self._max_fraction * count + 1e-9), count - 1)

    def record(self, of: str, bad: Iterable[BadImage]) -> None:
        """Add images of a set to the list.

        Raises:
          UserError: there are more than `limit`.
        """
        new = {image.name: image.reason for image in bad if image.name not in self._found[of]}
        if not new:
            return
        listed = {} if self._folder is None else read_lists(self._folder)
        for name, images in listed.items():
            self._found.setdefault(name, {}).update(images)
        found = self._found[of]
        for name, reason in new.items():
            if name not in found:
                found[name] = reason
                self._tell(of, name, reason)
        if len(found) > self.limit(of):
            shown = "; ".join(f"{name} ({reason})" for name, reason in list(found.items())[:SHOWN])
            more = f"; and {len(found) - SHOWN} more{self._where}" if len(found) > SHOWN else ""
            raise UserError(
                f"{len(found)} of {self._counts[of]} images of the {of} set cannot be read, more than "
                f"config.data.max_bad_fraction={self._max_fraction:g} allows: {shown}{more}. Mend or remove "
                "them, or allow more."
            )

    @property
    def _where(self) -> str:
        return "" if self._folder is None else f", listed in {self._folder / self._name}"

    def _tell(self, of: str, name: str, reason: str) -> None:
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            row = {"set": of, "image": name, "reason": reason}
            with (self._folder / self._name).open("a") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        said = len(self._found[of])
        if said <= SAID:
            more = f" Further ones are not named here{self._where}." if said == SAID else ""
            logger.warning("Skipping an image of the %s set: %s: %s.%s", of, name, reason, more)


def read_lists(folder: pathlib.Path) -> dict[str, dict[str, str]]:
    """The reasons in all lists of a folder, by set and by image."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted(folder.glob("bad_images*.jsonl")):
        for line in path.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # the process was killed while it wrote the line
                continue
            found.setdefault(row["set"], {})[row["image"]] = row["reason"]
    return found
