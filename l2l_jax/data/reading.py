"""Reading and transforming rows of sets, in this process or in worker processes, and what cannot be read.

Nothing here loads JAX: worker processes import this module.
"""

import contextlib
import functools
import json
import logging
import pathlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np

from l2l_jax.data.class_names import printable
from l2l_jax.data.decoding import ImageError, open_image
from l2l_jax.data.records import Source, image_name
from l2l_jax.data.transforms import Transform
from l2l_jax.errors import UserError
from l2l_jax.utils.threads import DaemonPool

logger = logging.getLogger(__name__)

LOGGED = 20
"""Bad images of a set that are named on the console; the list names all."""

SHOWN = 10
"""Bad images that the error names."""

LARGE, MUCH, SAMPLED = 128, 3, 8
"""Side in pixels from which on shrinking is taken for granted, the factor that is a lot, images looked at."""

STALLED_AFTER = 10.0
"""Seconds after which the console says which image a read waits for."""


class Row(NamedTuple):
    """An image to read: number of the set, index in it, and the epoch, which decides its crop."""

    set_number: int
    index: int  # type: ignore[assignment]  # a tuple's method
    epoch: int


class BadImage(NamedTuple):
    """An image that could not be decoded: its name, and why."""

    name: str
    reason: str


class Rows(NamedTuple):
    """Images that were read.

    Attributes:
      images: `[row, size, size, channel]`, uint8, or float32 in [0, 1]; zeros where an image is bad.
      bad: Bad images by row.
    """

    images: np.ndarray
    bad: dict[int, BadImage]


class Reader:
    """Reads rows of sets; can be pickled.

    Args:
      sources: Sources of the sets, by number.
      transforms: Transforms of the sets, by number; None: the images are arrays and stay as they are.
      seed: Seed of the choices that the transforms make.
    """

    def __init__(self, sources: Iterable[Source], transforms: Iterable[Transform | None], seed: int):
        self._sources, self._transforms, self._seed = tuple(sources), tuple(transforms), seed

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """`(height, width, channel)` of the images; None if they stay as they are."""
        return None if self._transforms[0] is None else self._transforms[0].shape

    def read(self, rows: Sequence[Row]) -> Rows:
        """Read and transform rows. All images must come from files, or none."""
        with _watch() as started:
            squares = [self._read(row, started) for row in rows]
        bad = {place: square for place, square in enumerate(squares) if isinstance(square, BadImage)}
        good = [square for square in squares if not isinstance(square, BadImage)]
        blank = np.zeros_like(good[0]) if good else np.zeros(self.shape or (1, 1, 1), np.uint8)
        return Rows(np.stack([blank if isinstance(square, BadImage) else square for square in squares]), bad)

    def _read(self, row: Row, started: "_Started") -> np.ndarray | BadImage:
        source, transform = self._sources[row.set_number], self._transforms[row.set_number]
        started(source, row.index)
        try:
            record = source[row.index]
        except OSError as error:
            return BadImage(str(error.filename or f"record {row.index}"), str(error))
        image = record["image"]
        if transform is None:
            assert isinstance(image, np.ndarray), "files need a transform"
            return image
        try:
            return transform(image, (self._seed, row.set_number, row.epoch, row.index))
        except ImageError as error:
            return BadImage(record["name"], str(error))


class ReaderThreads:
    """Threads of this process that read rows; `l2l_jax.data.workers.WorkerPool` has processes."""

    process_ids: Sequence[int] = ()

    def __init__(self, reader: Reader, count: int):
        self._reader, self._threads = reader, DaemonPool(count, "l2l_jax-reader")

    def read(self, rows: Sequence[Row]) -> "Future[Rows]":
        """Have a thread read."""
        return self._threads.submit(self._reader.read, rows)

    def close(self) -> None:
        """Give up what is not read yet."""
        self._threads.close()


_Started = Callable[[Source, int], None]
"""Notes the image that a thread starts to read."""


@contextlib.contextmanager
def _watch() -> Iterator[_Started]:
    """Have the console name the image that this thread reads if that does not end."""
    reads, thread = _watched_reads(), threading.get_ident()

    def started(source: Source, index: int) -> None:
        reads[thread] = time.monotonic(), source, index

    try:
        yield started
    finally:
        reads.pop(thread, None)


@functools.cache
def _watched_reads() -> dict[int, tuple[float, Source, int]]:
    """Start to watch reads of this process: start, source and index by thread."""
    reads: dict[int, tuple[float, Source, int]] = {}

    def look() -> None:
        named: set[tuple[int, float]] = set()
        while True:
            time.sleep(STALLED_AFTER / 10)
            current = {(thread, start): (source, i) for thread, (start, source, i) in reads.copy().items()}
            named &= current.keys()
            for read, (source, index) in current.items():
                if time.monotonic() - read[1] > STALLED_AFTER and read not in named:
                    named.add(read)
                    logger.warning(
                        "Waiting for %s, which takes more than %g s to read. Is its disk or network still "
                        "there? Ctrl-C ends the run.",
                        printable(image_name(source, index)),
                        STALLED_AFTER,
                    )

    threading.Thread(target=look, name="l2l_jax-watch", daemon=True).start()
    return reads


def warn_of_shrinking(source: Source, image_size: int) -> None:
    """Warn where images lose most of their pixels in a small model, as from 400×300 to 16×16."""
    if image_size >= LARGE:
        return
    sizes = []
    for index in map(int, np.unique(np.linspace(0, len(source) - 1, SAMPLED).astype(int))):
        with _watch() as started, contextlib.suppress(OSError, ImageError):
            started(source, index)
            image = source[index]["image"]
            if isinstance(image, bytes):
                opened = open_image(image)
                sizes.append((opened.height, opened.width))
            else:
                sizes.append((image.shape[0], image.shape[1]))
    if not sizes:
        return
    height, width = sorted(sizes)[len(sizes) // 2]
    if min(height, width) > MUCH * image_size:
        logger.warning(
            "Images shrink a lot: %d×%d → %d×%d pixels. A config for larger images keeps more of them.",
            *(width, height, image_size, image_size),
        )


class BadImages:
    """The bad images of a phase, by set, also those that earlier parts of the run or other processes found.

    Each process writes a list of its own, `bad_images.jsonl` or `bad_images-<process>.jsonl`, so that they
    never wait for each other; all are read when one finds another bad image.

    Args:
      folder: Folder of the lists, made when there is something to write; None: no list is kept.
      counts: Number of images by name of the set.
      max_fraction: Share of a set that may be bad.
      process_index: Index of this process.
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
        self._found: dict[str, dict[str, str]] = {name: {} for name in counts}

    def limit(self, set_name: str) -> int:
        """Return how many images of a set may be bad; never all."""
        count = self._counts[set_name]
        return min(int(self._max_fraction * count + 1e-9), count - 1)

    def record(self, set_name: str, bad: Iterable[BadImage]) -> None:
        """Add images of a set to the list.

        Raises:
          UserError: There are more than `limit`.
        """
        new = {image.name: image.reason for image in bad if image.name not in self._found[set_name]}
        if not new:
            return
        listed = {} if self._folder is None else read_lists(self._folder)
        for name, images in listed.items():
            self._found.setdefault(name, {}).update(images)
        found = self._found[set_name]
        where = "" if self._folder is None else f", listed in {self._folder / self._name}"
        for name, reason in new.items():
            if name not in found:
                found[name] = reason
                self._write(set_name, name, reason)
                if len(found) <= LOGGED:
                    more = f" Further ones are not named here{where}." if len(found) == LOGGED else ""
                    shown = printable(name)
                    logger.warning(
                        "Skipping an image of the %s set: %s: %s.%s", set_name, shown, reason, more
                    )
        if len(found) > self.limit(set_name):
            shown = "; ".join(f"{printable(name)} ({reason})" for name, reason in list(found.items())[:SHOWN])
            more = f"; and {len(found) - SHOWN} more{where}" if len(found) > SHOWN else ""
            raise UserError(
                f"{len(found)} of {self._counts[set_name]} images of the {set_name} set cannot be read, more "
                f"than config.data.max_bad_fraction={self._max_fraction:g} allows: {shown}{more}. Fix or "
                "remove them, or allow more."
            )

    def _write(self, set_name: str, name: str, reason: str) -> None:
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        row = json.dumps({"set": set_name, "image": name, "reason": reason}, ensure_ascii=False)
        # Names need not be UTF-8; an escaped surrogate is valid JSON.
        with (self._folder / self._name).open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(row + "\n")


def read_lists(folder: pathlib.Path) -> dict[str, dict[str, str]]:
    """Return the reasons in all lists of a folder, by set and by image."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted(folder.glob("bad_images*.jsonl")):
        for line in path.read_text("utf-8", "replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # the process was killed while it wrote the line
                continue
            found.setdefault(row["set"], {})[row["image"]] = row["reason"]
    return found
