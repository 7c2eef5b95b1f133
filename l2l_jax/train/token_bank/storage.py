"""The files of a bank: codes by set, and how far they are filled."""

import functools
import json
import pathlib
from typing import Any

import numpy as np

from l2l_jax.data.loader import EpochOrder

CODES = np.uint16
"""Type of codes on the disk and on their way to the devices; codebooks have far fewer than 65,536."""


class Codes:
    """The codes of a set, `[view, image, token]`, in a file that is read and written in place.

    The stream of a set is the one of `l2l_jax.data.loader`: position p shows the image that `order` has
    there, in the view of its epoch; when all views have been shown, the first one comes again.

    Args:
      path: the file.
      order: of the set.
      views: how many there are of each image.
      tokens: of an image.
    """

    def __init__(self, path: pathlib.Path, order: EpochOrder, views: int, tokens: int):
        self.path, self.order, self.views = path, order, views
        self.shape = (views, order.count, tokens)
        self.positions = views * order.count

    def create(self) -> None:
        """Make the file, with zeros."""
        np.lib.format.open_memmap(self.path, "w+", CODES, self.shape).flush()

    def write(self, positions: np.ndarray, codes: np.ndarray) -> None:
        """Keep the codes `[position, token]` of the first round; those of later ones are left out."""
        first = positions < self.positions
        views, indices = self.order(positions[first])
        file = np.lib.format.open_memmap(self.path, "r+")
        file[views, indices] = codes[first]
        file.flush()

    def read(self, positions: np.ndarray) -> np.ndarray:
        """Codes `[position, token]`."""
        epochs, indices = self.order(positions)
        return self._file[epochs % self.views, indices]

    @functools.cached_property
    def _file(self) -> np.ndarray:
        return np.load(self.path, mmap_mode="r")


class Ledger:
    """What a bank holds, and how many global batches of it are computed: `bank.json` in its folder."""

    def __init__(self, folder: pathlib.Path):
        self._path = folder / "bank.json"

    def batches(self, content: dict[str, Any]) -> int:
        """How many batches of that content are there; none of another content or a damaged file."""
        try:
            found = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return 0
        return found["batches"] if found.get("content") == content else 0

    def note(self, content: dict[str, Any], batches: int) -> None:
        """Write down that so many batches are on the disk."""
        unfinished = self._path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps({"content": content, "batches": batches}, indent=2) + "\n")
        unfinished.replace(self._path)
