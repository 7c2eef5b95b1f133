"""The list of images that could not be decoded, on the disk, and when there are too many."""

import json
import logging
import pathlib
from collections.abc import Iterable

from l2l_jax.data.reading import BadImage
from l2l_jax.errors import UserError

logger = logging.getLogger(__name__)

SAID = 20
"""Bad images of a set that are named on the console; the list names all."""

SHOWN = 10
"""Bad images that the error names."""


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
