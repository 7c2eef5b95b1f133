"""Reading and transforming of images, in this process or in worker processes.

This module must not import JAX: a worker is a new interpreter that imports this module and what a `Reader`
needs, but not the parent's main program. (grain's worker processes import JAX, which takes seconds and
hundreds of megabytes each.) A worker exits when its connection closes, so it never outlives its parent.
"""

import contextlib
import functools
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import NamedTuple

import cloudpickle
import numpy as np

from l2l_jax.data.canaries import paint
from l2l_jax.data.decoding import ImageError, OpenImage, open_image
from l2l_jax.data.records import Source
from l2l_jax.data.transforms import Transform
from l2l_jax.errors import UserError
from l2l_jax.utils.text import printable

logger = logging.getLogger(__name__)
# Thresholds of `warn_of_shrinking`: image side without warning, shrink factor, number of sampled images
LARGE, MUCH, SAMPLED = 128, 3, 8
STALLED_AFTER = 10.0  # seconds after which a slow read is reported on the console
ENDED_WITHIN = 2.0  # seconds to wait for a killed process


class Row(NamedTuple):
    """An image to read: index of the set, index within the set, and epoch, which determines its crop."""

    set_number: int
    index: int  # type: ignore[assignment]  # a tuple's method
    epoch: int


class BadImage(NamedTuple):
    """An image that could not be decoded: its name and the reason."""

    name: str
    reason: str


# Images `[size, size, channel]`, uint8 or float32 in [0, 1], or `BadImage`s
Rows = list[np.ndarray | BadImage]


class Reader:
    """A picklable reader of images that applies the transform of each set (None leaves arrays unchanged)."""

    def __init__(self, sources: Iterable[Source], transforms: Iterable[Transform | None], seed: int):
        self._sources, self._transforms, self._seed = tuple(sources), tuple(transforms), seed

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """Shape `(height, width, channel)` of the images; None without a transform."""
        return None if self._transforms[0] is None else self._transforms[0].shape

    def read(self, rows: Sequence[Row]) -> Rows:
        """Read and transform rows."""
        return [self._read(row) for row in rows]

    def _read(self, row: Row) -> np.ndarray | BadImage:
        source, transform = self._sources[row.set_number], self._transforms[row.set_number]
        try:
            with _watched(source, row.index):
                record = source[row.index]
        except OSError as error:
            return BadImage(str(error.filename or f"record {row.index}"), str(error))
        image = record["image"]
        if transform is None:
            assert isinstance(image, np.ndarray), "files need a transform"
            return image
        try:
            square = transform(image, (self._seed, row.set_number, row.epoch, row.index))
        except ImageError as error:
            return BadImage(record["name"], str(error))
        return paint(square, record["mark"]) if "mark" in record else square


@contextlib.contextmanager
def _watched(source: Source, index: int) -> Iterator[None]:
    """Report an image on the console if this thread takes too long to read it."""
    reads, thread = _watched_reads(), threading.get_ident()
    reads[thread] = time.monotonic(), source, index
    try:
        yield
    finally:
        del reads[thread]


@functools.cache
def _watched_reads() -> dict[int, tuple[float, Source, int]]:
    """Start a thread that watches reads of this process: start time, source and index by thread."""
    reads: dict[int, tuple[float, Source, int]] = {}

    def look() -> None:
        named = set()
        while True:
            time.sleep(STALLED_AFTER / 10)
            for thread, (start, source, index) in reads.copy().items():
                if time.monotonic() - start > STALLED_AFTER and (thread, start) not in named:
                    named.add((thread, start))
                    logger.warning(
                        "Waiting for %s, which takes more than %g s to read. Is its disk or network "
                        "available? Ctrl-C ends the run.",
                        *(printable(source.name(index)), STALLED_AFTER),
                    )

    threading.Thread(target=look, name="l2l_jax-watch", daemon=True).start()
    return reads


def warn_of_shrinking(source: Source, image_size: int) -> None:
    """Warn if images lose most of their pixels in a small model, for example 400×300 to 16×16."""
    if image_size >= LARGE:
        return
    sizes = []
    for index in map(int, np.unique(np.linspace(0, len(source) - 1, SAMPLED).astype(int))):
        with _watched(source, index), contextlib.suppress(OSError, ImageError):
            image = source[index]["image"]
            opened = open_image(image) if isinstance(image, bytes) else OpenImage(image, *image.shape[:2])
            sizes.append((opened.height, opened.width))
    height, width = sorted(sizes)[len(sizes) // 2] if sizes else (0, 0)
    if min(height, width) > MUCH * image_size:
        logger.warning(
            "Images shrink a lot: %d×%d → %d×%d pixels. A config for larger images keeps more of them.",
            *(width, height, image_size, image_size),
        )


class WorkerPool:
    """A pool of `count` processes with copies of a reader, for up to `count` concurrent calls of `read`."""

    def __init__(self, reader: Reader, count: int):
        pickled = cloudpickle.dumps(reader)
        self._workers = [_Worker(pickled) for _ in range(count)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)

    @property
    def process_ids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.process.pid for worker in self._workers]

    def read(self, rows: Sequence[Row]) -> Rows:
        """Read rows in a worker process."""
        worker = self._idle.get()
        try:
            return worker.read(rows)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """Kill the processes, which have no state to lose."""
        for worker in self._workers:
            worker.process.kill()  # wakes up a thread that waits for it
        for worker in self._workers:
            worker.connection.close()
            with contextlib.suppress(subprocess.TimeoutExpired):  # may hang on a dead network file system
                worker.process.wait(ENDED_WITHIN)


class _Worker:
    """The parent's handle of a worker process, for one thread at a time."""

    def __init__(self, pickled_reader: bytes):
        self.connection, theirs = Pipe()
        program = f"from l2l_jax.data.reading import serve; serve({theirs.fileno()})"
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C and signals to the group go to the parent only
            )
        self._unsent = [pickled_reader]  # sent at the first read, to start all interpreters in parallel

    def read(self, rows: Sequence[Row]) -> Rows:
        try:
            for message in (*self._unsent, cloudpickle.dumps(rows)):
                self.connection.send_bytes(message)
            self._unsent.clear()
            answer = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.kill()
            raise UserError(
                "A worker process that reads images exited unexpectedly (exit code "
                f"{self.process.wait()}; -9: out of memory). Its output is above. Fewer workers "
                "(config.data.workers) need less memory; rerun the command to resume."
            ) from None
        if isinstance(answer, Exception):
            raise answer
        return answer


def serve(file_descriptor: int) -> None:
    """Receive a `Reader`, then read rows until the connection closes (main loop of a worker process)."""
    with Connection(file_descriptor) as connection, contextlib.suppress(EOFError, ConnectionError):
        reader = cloudpickle.loads(connection.recv_bytes())
        while True:
            rows = cloudpickle.loads(connection.recv_bytes())
            try:
                answer = reader.read(rows)
            except Exception as error:  # raised in the parent
                answer = error
            connection.send(answer)
