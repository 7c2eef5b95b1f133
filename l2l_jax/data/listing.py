"""One lister of image files, for training data, evaluation folders and wherever else images are listed."""

import functools
import itertools
import logging
import os
import pathlib
from collections.abc import Iterator

from etils import epath
from PIL import features

from l2l_jax.errors import UserError

logger = logging.getLogger(__name__)

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"),
    *((".avif",) if features.check("avif") else ()),
)
"""Endings of image files, in lower case; Pillow reads AVIF from release 11.3 on."""

UNREAD = (
    *(".heic", ".heif", ".hif", ".avif", ".jxl", ".jp2", ".svg", ".psd", ".raw", ".dng", ".cr2", ".cr3"),
    *(".nef", ".arw", ".orf", ".rw2", ".raf", ".eps", ".pdf", ".exr", ".hdr", ".tga"),
)
"""Endings of images that are not read and have to be converted."""

JUNK = frozenset(
    ("__macosx", "lost+found", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "#recycle")
    + ("@eadir", "system volume information", "__pycache__", "icon\r")
)
"""Files and folders that operating systems put beside images, in lower case."""


def is_image(name: str) -> bool:
    """Return whether a file of this name counts as an image: by its ending, unless it is hidden."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


class Lister:
    """Lists the images below a folder and counts what it passes over.

    Hidden names (".x"), what operating systems leave, files with other endings, broken links, and what is
    neither file nor folder are passed over. Links are followed, circles end.

    Args:
      root: Folder, which may be remote. All paths are relative to it, with "/" between names.

    Attributes:
      linked: Whether a link to a file was listed.
    """

    def __init__(self, root: epath.Path | pathlib.Path):
        self.root, self.linked = epath.Path(root), False
        self._remote = "://" in os.fspath(self.root)
        self._passed: dict[tuple[str, str], dict[str, tuple[int, list[str]]]] = {}
        self._groups: dict[str, tuple[str, str]] = {}

    def level(self, place: str) -> tuple[list[str], list[str]]:
        """Return the names of the folders and of the images in a folder, sorted.

        Raises:
          OSError: The folder cannot be read.
        """
        folders: list[str] = []
        images: list[str] = []
        passed: dict[tuple[str, str], list[str]] = {}
        for name, kind in sorted(self._entries(place)):
            reason = _reason(name, kind)
            if reason:
                passed.setdefault(reason, []).append(_join(place, name))
            else:
                (folders if kind == "folder" else images).append(name)
        for reason, paths in passed.items():  # a folder may be listed twice
            self._passed.setdefault(reason, {})[place] = len(paths), paths[:2]
        return folders, images

    def images(self, place: str, group: str = "") -> list[str]:
        """Return the paths of all images below a folder, sorted.

        Args:
          place: The folder, relative to the root.
          group: What the images are of, such as the class. No folder may be in two groups.

        Raises:
          OSError: A folder cannot be read.
          UserError: A folder is in two groups, through a link.
        """
        return sorted(self._below(place, group))

    def has_images(self, place: str) -> bool:
        """Return whether there is any image below a folder."""
        folders, images = self.level(place)
        return bool(images) or any(self.has_images(_join(place, name)) for name in folders)

    def pass_over(self, path: str, one: str, several: str) -> None:
        """Count a path among those that are not read, for a reason in the singular and the plural."""
        self._passed.setdefault((one, several), {})[path] = 1, [path]

    def passed_over(self) -> str:
        """Describe what was passed over; empty if there is nothing."""
        parts = []
        for (one, several), places in sorted(self._passed.items()):
            count = sum(number for number, _ in places.values())
            paths = itertools.islice((path for _, first in places.values() for path in first), 2)
            shown = ", ".join(paths) + (", …" if count > 2 else "")
            parts.append(f"{count:,} {one if count == 1 else several} ({shown})")
        return "; ".join(parts)

    def report(self) -> str:
        """Log what was passed over, once for each folder, and return it."""
        text = self.passed_over()
        if text:
            grave = any("convert" in one or "link" in one or "special" in one for one, _ in self._passed)
            log_once(logging.WARNING if grave else logging.INFO, f"{self.root}: passed over {text}.")
        return text

    def _below(self, place: str, group: str) -> Iterator[str]:
        if not self._remote and not self._enter(place, group):
            return
        folders, images = self.level(place)
        yield from (_join(place, name) for name in images)
        for name in folders:
            yield from self._below(_join(place, name), group)

    def _enter(self, place: str, group: str) -> bool:
        """Return whether a folder has not been listed yet."""
        real, root = os.path.realpath(self.root / place), os.path.realpath(self.root)
        other_group, other = self._groups.setdefault(real, (group, place))
        above = place and os.path.commonpath((real, root)) == real
        if other == place and not above:
            return True
        if other_group != group:
            raise UserError(
                f"{self.root / other} and {self.root / place} are the same folder, through a link, but an "
                "image can be in one class and in one split only. Remove the link."
            )
        self.pass_over(place, "link to a folder listed already", "links to folders listed already")
        return False

    def _entries(self, place: str) -> Iterator[tuple[str, str]]:
        """Yield names and kinds: folder, file, link (a broken one) or special."""
        if self._remote:
            _, folders, files = next(iter((self.root / place).walk()), (None, (), ()))
            yield from ((name, "folder") for name in folders)
            yield from ((name, "file") for name in files)
            return
        with os.scandir(self.root / place) as entries:
            for entry in entries:
                try:
                    kind = "folder" if entry.is_dir() else "file" if entry.is_file() else "special"
                    if entry.is_symlink():
                        self.linked |= kind == "file"
                        kind = kind if os.path.exists(entry.path) else "link"
                except OSError:  # a link to itself
                    kind = "link"
                yield entry.name, kind


def _join(place: str, name: str) -> str:
    return f"{place}/{name}" if place else name


def _reason(name: str, kind: str) -> tuple[str, str] | None:
    """Return why something is passed over, in the singular and the plural; None: it is not."""
    noun = "folder" if kind == "folder" else "file"
    if name.startswith("."):
        return f"hidden {noun}", f"hidden {noun}s"
    if name.lower() in JUNK:
        return f"{noun} of the operating system", f"{noun}s of the operating system"
    if kind == "link":
        return "broken link", "broken links"
    if kind == "special":
        return "special file, such as a pipe", "special files, such as pipes"
    if kind == "folder" or is_image(name):
        return None
    ending = os.path.splitext(name)[1].lower()
    if ending in UNREAD:
        what = f"ending in {ending}: convert to JPEG or PNG"
    else:
        what = f"ending in {ending}" if ending else "without an ending"
    return f"file {what}", f"files {what}"


@functools.cache
def log_once(level: int, message: str) -> None:
    """Log a message, unless it was logged before: sources are opened several times."""
    logger.log(level, "%s", message)
