"""Listing of image files, shared by training data, evaluation folders and other commands."""

import functools
import logging
import os
import pathlib
from collections.abc import Hashable, Iterator, Mapping, Set
from typing import TypeVar

from etils import epath
from PIL import features

from l2l_jax.errors import UserError
from l2l_jax.utils.text import printable

logger = logging.getLogger(__name__)
T = TypeVar("T", bound=Hashable)

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"),
    *((".avif",) if features.check("avif") else ()),
)
"""Suffixes of image files, in lower case; Pillow supports AVIF since release 11.3."""

UNREAD = frozenset(
    (".heic", ".heif", ".hif", ".avif", ".jxl", ".jp2", ".svg", ".psd", ".raw", ".dng", ".cr2", ".cr3")
    + (".nef", ".arw", ".orf", ".rw2", ".raf", ".eps", ".pdf", ".exr", ".hdr", ".tga")
)
"""Suffixes of unsupported images, which must be converted."""

JUNK = frozenset(
    ("__macosx", "lost+found", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "#recycle")
    + ("@eadir", "system volume information", "__pycache__", "icon\r")
)
"""Files and folders that operating systems create next to images, in lower case."""


class Lister:
    """A lister of the images below a folder, which may be remote, that counts skipped files.

    It skips hidden names (".x"), files of operating systems, files with other suffixes, broken links, and
    entries that are neither file nor folder. Links are followed; cycles are detected. All paths are relative
    to the root, with "/" between names.
    """

    def __init__(self, root: epath.Path | pathlib.Path):
        self.root, self._linked = epath.Path(root), False
        self._remote = "://" in os.fspath(self.root)
        self._passed: dict[str, dict[str, None]] = {}  # unique paths by reason, as folders are listed twice

    def level(self, place: str) -> tuple[list[str], list[str]]:
        """Return the names of the subfolders and the images in a folder, sorted."""
        folders: list[str] = []
        images: list[str] = []
        for name, kind in sorted(self._entries(place)):
            reason = _reason(name, kind)
            if reason:
                self.pass_over(_join(place, name), reason)
            else:
                (folders if kind == "folder" else images).append(name)
        return folders, images

    def images(self, place: str) -> list[str]:
        """Return the paths of all images below a folder, sorted."""
        root = pathlib.Path(os.path.realpath(self.root))
        return sorted(self._below(place, {root, *root.parents} if place else {*root.parents}))

    def without_copies(self, groups: Mapping[T, list[str]]) -> dict[T, list[str]]:
        """Return the paths of each group, such as a class, without files that are repeated through links."""
        if not self._linked:
            return dict(groups)
        first: dict[tuple[int, int], tuple[T, str]] = {}
        for group, paths in groups.items():
            for path in paths:
                state = os.stat(self.root / path)
                other_group, other = first.setdefault((state.st_dev, state.st_ino), (group, path))
                if other_group != group:
                    raise UserError(
                        f"{self.root / path} and {self.root / other} are the same file, through a link, but "
                        "an image can be in one class and in one split only. Remove one of them."
                    )
                if other != path:
                    self.pass_over(path, "link{s} to what is listed already")
        kept = set(first.values())
        return {group: [path for path in paths if (group, path) in kept] for group, paths in groups.items()}

    def has_images(self, place: str) -> bool:
        """Return whether there is any image below a folder."""
        folders, images = self.level(place)
        return bool(images) or any(self.has_images(_join(place, name)) for name in folders)

    def pass_over(self, path: str, reason: str) -> None:
        """Record a path as skipped; "{s}" in the reason marks the plural."""
        self._passed.setdefault(reason, {})[path] = None

    def report(self) -> str:
        """Log the skipped files once per folder, and return the description; empty if there are none."""
        parts = []
        for reason, paths in sorted(self._passed.items()):
            count, named = len(paths), ", ".join(map(printable, [*paths][:2]))
            noun = reason.replace("{s}", "s" * (count > 1))
            parts.append(f"{count:,} {noun} ({named}{', …' * (count > 2)})")
        if parts:
            grave = any(word in reason for reason in self._passed for word in ("convert", "link", "special"))
            level = logging.WARNING if grave else logging.INFO
            log_once(level, f"{self.root}: skipped {'; '.join(parts)}.")
        return "; ".join(parts)

    def _below(self, place: str, above: Set[pathlib.Path]) -> Iterator[str]:
        real = pathlib.Path(place if self._remote else os.path.realpath(self.root / place))
        if real in above:
            self.pass_over(place, "link{s} to what is listed already")
            return
        folders, images = self.level(place)
        yield from (_join(place, name) for name in images)
        for name in folders:
            yield from self._below(_join(place, name), above | {real})

    def _entries(self, place: str) -> Iterator[tuple[str, str]]:
        """Yield names and kinds: "folder", "file", "link" (broken) or "special"."""
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
                        self._linked, kind = True, kind if os.path.exists(entry.path) else "link"
                except OSError:  # a link to itself
                    kind = "link"
                yield entry.name, kind


def _join(place: str, name: str) -> str:
    return f"{place}/{name}" if place else name


def _reason(name: str, kind: str) -> str:
    """Return the reason for skipping an entry; empty if it is not skipped."""
    noun = "folder{s}" if kind == "folder" else "file{s}"
    ending = os.path.splitext(name)[1].lower()
    if name.startswith("."):
        return f"hidden {noun}"
    if name.lower() in JUNK:
        return f"{noun} of the operating system"
    if kind == "link":
        return "broken link{s}"
    if kind == "special":
        return "special file{s}, such as a pipe"
    if kind == "folder" or name.lower().endswith(SUFFIXES):
        return ""
    if ending in UNREAD:
        return f"file{{s}} ending in {ending}: convert to JPEG or PNG"
    return f"file{{s}} ending in {ending}" if ending else "file{s} without an ending"


@functools.cache
def log_once(level: int, message: str) -> None:
    """Log a message unless it was logged before, because sources are opened several times."""
    logger.log(level, "%s", message)
