"""A persistent list of images that cannot be decoded, with a limit."""

import json
import logging
import pathlib
from collections.abc import Iterable

from l2l_jax.data.reading import BadImage
from l2l_jax.errors import UserError
from l2l_jax.utils.text import printable

logger = logging.getLogger(__name__)
# Maximum bad images per set to name on the console and in the error; the list has all
LOGGED, SHOWN = 20, 10


class BadImages:
    """The bad images of a phase by set, including those found before a restart or by other processes.

    To avoid locking, each process writes its own list to a folder, `bad_images.jsonl` or
    `bad_images-<process>.jsonl`. All lists are read when a process finds another bad image.
    """

    def __init__(
        self, folder: pathlib.Path | None, counts: dict[str, int], max_fraction: float, process_index: int = 0
    ):
        self._counts, self._max_fraction = counts, max_fraction
        name = f"bad_images{f'-{process_index}' if process_index else ''}.jsonl"
        self._path = None if folder is None else folder / name
        self._found: dict[str, dict[str, str]] = {name: {} for name in counts}

    def limit(self, set_name: str) -> int:
        """Return the number of images of a set that may be bad; it is always less than all."""
        count = self._counts[set_name]
        return min(int(self._max_fraction * count + 1e-9), count - 1)

    def record(self, set_name: str, bad: Iterable[BadImage]) -> None:
        """Add images of a set to the list.

        Raises:
          UserError: There are more than `limit`.
        """
        found = self._found[set_name]
        new = {image.name: image.reason for image in bad if image.name not in found}
        if not new:
            return
        if self._path:
            found.update(read_lists(self._path.parent).get(set_name, {}))
        where = f", listed in {self._path}" if self._path else ""
        for name, reason in new.items():
            if name not in found:
                found[name] = reason
                self._write({"set": set_name, "image": name, "reason": reason})
                if len(found) <= LOGGED:
                    more = f" Further ones are not named here{where}." if len(found) == LOGGED else ""
                    logger.warning(
                        "Skipping an image of the %s set: %s: %s.%s", set_name, printable(name), reason, more
                    )
        if len(found) > self.limit(set_name):
            named = "; ".join(f"{printable(name)} ({reason})" for name, reason in list(found.items())[:SHOWN])
            more = f"; and {len(found) - SHOWN} more{where}" if len(found) > SHOWN else ""
            raise UserError(
                f"{len(found)} of {self._counts[set_name]} images of the {set_name} set cannot be read, more "
                f"than config.data.max_bad_fraction={self._max_fraction:g} allows: {named}{more}. Fix or "
                "remove them, or allow more."
            )

    def _write(self, row: dict[str, str]) -> None:
        if self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # File names may not be UTF-8; an escaped surrogate is valid JSON.
            with self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_lists(folder: pathlib.Path) -> dict[str, dict[str, str]]:
    """Return the reasons from all lists in a folder, by set and image."""
    reasons: dict[str, dict[str, str]] = {}
    for path in sorted(folder.glob("bad_images*.jsonl")):
        for line in path.read_text("utf-8", "replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # the process was killed while writing the line
                continue
            reasons.setdefault(row["set"], {})[row["image"]] = row["reason"]
    return reasons
