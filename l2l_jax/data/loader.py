"""Training batches with grain: balanced, seeded, sharded by process, resumable."""

import dataclasses
import functools
import logging
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from typing import Any, Protocol

import grain
import numpy as np

from l2l_jax.data.bad_images import BadImages
from l2l_jax.data.reading import BadImage, Reader, Row, Rows, WorkerPool
from l2l_jax.data.records import Source
from l2l_jax.data.transforms import Transform, in_range
from l2l_jax.errors import Interrupted, UserError
from l2l_jax.utils.runtime import usable_cpus
from l2l_jax.utils.stopping import asked_to_stop
from l2l_jax.utils.threads import DaemonPool

logger = logging.getLogger(__name__)
ENDLESS = 2**48  # batches after which a stream ends: more than anyone trains on
CHUNK = 16  # images that a worker reads at a time, so that a batch is spread over all workers
# Memory for batches that are read ahead, and their least and greatest number
AHEAD_BYTES, AHEAD = 256 * 2**20, (2, 16)
# Seconds without a batch after which a signal ends the wait for it: less than `stopping.GRACE_SECONDS`
STOP_AFTER = 5.0
Submit = Callable[[Sequence[Row]], "Future[Rows]"]


@dataclasses.dataclass(frozen=True)
class LoaderOptions:
    """Settings of a process that reads its share of the batches."""

    bad_folder: pathlib.Path | None = None  # of the lists of bad images, see `BadImages`
    max_bad_fraction: float = 0.0  # of a set that may be impossible to decode
    workers: int = 0  # processes that read and decode; 0: threads
    process_index: int = 0
    process_count: int = 1


class EpochOrder:
    """Every epoch a new permutation of `count` images, each a function of `seed` and the epoch alone.

    An epoch's permutation is drawn once and kept while it lasts: 10 MB for 1.28 million images. It
    sorts raw words of a bit generator, whose streams NumPy guarantees from version to version, which
    it does not for `Generator.permutation`.
    """

    def __init__(self, count: int, seed: int):
        self.count, self.seed = count, seed
        self._permutation = functools.lru_cache(maxsize=2)(self._draw)  # reading ahead crosses the border

    def _draw(self, epoch: int) -> np.ndarray:
        words = np.random.Philox(np.random.SeedSequence((self.seed, epoch))).random_raw(self.count)
        return np.argsort(words, kind="stable")

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return epochs and indices (0 … count − 1) at `positions` of the stream, all `[place]`."""
        epochs, places = np.divmod(np.asarray(positions, np.int64), self.count)
        indices = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = self._permutation(int(epoch))[places[here]]
        return epochs, indices


class Batches(Protocol):
    """Endless batches `{set: this process's rows}`; see `BatchIterator` for what their iterators offer."""

    @property
    def value_range(self) -> tuple[float, float]:
        """Range of the float images, and that to which uint8 ones are to be brought."""
        ...

    def __iter__(self) -> Any: ...


class TrainingBatches:
    """An endless stream of `{set: images [rows, height, width, channel]}`; iterating over it starts to read.

    Images from files are uint8, a quarter of the bytes for memory and devices: the step brings them to
    `value_range`. Those of sources that hold float arrays are float32 in it.

    Every set is shuffled anew in each epoch and repeated, so all sets give equally many images to a
    batch: the smaller one is oversampled. Which images a global batch holds, and how they are cropped,
    depends on `seed` alone; process p of n gets the p-th of n equal slices of each batch, its `rows`, and
    reads no other image.

    An image that cannot be decoded is listed, and another of its set takes its place: the one that is half
    an epoch further on in the epoch's order, or the next good one after that. So batches are full, all other
    images stay where they were, and nothing depends on what was found before.

    Args:
      sets: Sources by name.
      batch_size: Images per set in the global batch, a multiple of the number of processes.
      value_range: Range of the float images, and that to which uint8 ones are to be brought.
      seed: Seed of the order and of the crops.
      transforms: Transforms to squares of one size by set; None: the records hold arrays of one size.
      options: Settings of this process.
    """

    def __init__(
        self,
        sets: Mapping[str, Source],
        batch_size: int,
        *,
        value_range: tuple[float, float],
        seed: int,
        transforms: Mapping[str, Transform] | None = None,
        options: LoaderOptions = LoaderOptions(),  # noqa: B008  (frozen)
    ):
        own, left = divmod(batch_size, options.process_count)
        if left:
            raise ValueError(f"batch_size {batch_size} is no multiple of {options.process_count} processes")
        self.batch_size, self.value_range, self.workers = batch_size, value_range, options.workers
        self.rows = range(options.process_index * own, (options.process_index + 1) * own)
        self.reader = Reader(sets.values(), [transforms[name] if transforms else None for name in sets], seed)
        counts = {name: len(source) for name, source in sets.items()}
        seeds = np.random.SeedSequence(seed).generate_state(len(sets)).tolist()
        self.orders = {name: EpochOrder(counts[name], s) for name, s in zip(sets, seeds, strict=True)}
        limit = options.max_bad_fraction
        self.bad_images = BadImages(options.bad_folder, counts, limit, options.process_index)

    def __iter__(self) -> "BatchIterator":
        return BatchIterator(self)

    def read(self, number: int, submit: Submit) -> tuple[dict[str, np.ndarray] | None, dict[str, list]]:
        """Return this process's rows of a global batch, and the bad images that were met, by set.

        None in place of the rows: there are too many bad images.
        """
        positions = number * self.batch_size + np.asarray(self.rows)
        chunk = CHUNK if self.workers else len(positions)  # threads have several batches to read
        reading = {}
        for name in self.orders:
            rows = self._rows(name, positions)
            reading[name] = [submit(rows[start : start + chunk]) for start in range(0, len(rows), chunk)]
        images: dict[str, np.ndarray] = {}
        bad: dict[str, list[BadImage]] = {}
        for name, futures in reading.items():
            squares: list[Any] = [square for future in futures for square in future.result()]
            bad[name] = [square for square in squares if isinstance(square, BadImage)]
            for place, position in enumerate(positions):
                if isinstance(squares[place], BadImage):
                    squares[place] = self._replaced(name, int(position), bad[name], submit)
            if all(square is not None for square in squares):
                pixels = np.stack(squares)
                images[name] = pixels if pixels.dtype == np.uint8 else in_range(pixels, self.value_range)
        return images if len(images) == len(bad) else None, bad

    def _rows(self, name: str, positions: np.ndarray) -> list[Row]:
        number = list(self.orders).index(name)
        epochs, indices = self.orders[name](positions)
        return [Row(number, int(i), int(e)) for i, e in zip(indices, epochs, strict=True)]

    def _replaced(self, name: str, position: int, bad: list[BadImage], submit: Submit) -> np.ndarray | None:
        """Return another image in place of a bad one; None if there are too many bad ones."""
        count = self.orders[name].count
        epoch, place = divmod(position, count)
        for step in range(count):
            if len(set(bad)) > self.bad_images.limit(name):
                break
            other = epoch * count + (place + count // 2 + step) % count
            (square,) = submit(self._rows(name, np.array([other]))).result()
            if not isinstance(square, BadImage):
                return square
            bad.append(square)
        return None


class BatchIterator:
    """Iterates over `TrainingBatches`; its state is the number of global batches that were taken.

    So the state depends neither on the number of processes nor on that of workers: another number resumes
    with the next global batch.
    """

    def __init__(self, batches: TrainingBatches):
        self._batches, self._taken = batches, 0
        self._processes = batches.batch_size // len(batches.rows)
        self._workers = WorkerPool(batches.reader, batches.workers) if batches.workers else None
        threads = batches.workers or min(4, len(usable_cpus()))
        self._readers, self._waiting = DaemonPool(threads, "l2l_jax-reader"), DaemonPool(1, "l2l_jax-batch")
        submit = functools.partial(self._readers.submit, (self._workers or batches.reader).read)
        # One element is one batch: grain's own shuffling costs more for each image than a small step has.
        numbers = grain.MapDataset.range(ENDLESS).map(lambda number: batches.read(number, submit))
        at_a_time = 2 if self._workers else threads  # workers do not idle between two batches
        batch_bytes = math.prod(batches.reader.shape or (1,)) * len(batches.rows) * len(batches.orders)
        ahead = int(np.clip(AHEAD_BYTES // batch_bytes, *AHEAD))
        options = grain.ReadOptions(num_threads=at_a_time, prefetch_buffer_size=ahead)
        self._iterator = iter(numbers.to_iter_dataset(options))

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        """Return this process's rows of the next global batch.

        Raises:
          UserError: Too many images cannot be decoded, or a worker process died.
          Interrupted: A signal asked to stop, and no batch came for `STOP_AFTER` seconds.
        """
        future, asked = self._waiting.submit(next, self._iterator), 0.0
        while not wait([future], timeout=STOP_AFTER / 10).done:
            signal_number = asked_to_stop()
            asked += STOP_AFTER / 10 if signal_number is not None else 0
            if signal_number is not None and asked > STOP_AFTER:
                raise Interrupted(self._taken, signal_number)
        images, bad = future.result()
        for name, found in bad.items():
            self._batches.bad_images.record(name, found)
        if images is None:  # images of equal names count as one
            raise UserError("No image could be found that takes the place of those that cannot be decoded.")
        self._taken += 1
        return images

    @property
    def worker_ids(self) -> list[int]:
        """Ids of the worker processes."""
        return self._workers.process_ids if self._workers else []

    def get_state(self) -> dict[str, Any]:
        """Return the JSON-able state, which is the same in every process."""
        return {"batches": self._taken, "processes": self._processes}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from another iterator's `get_state`, of however many processes."""
        self._taken = state["batches"]
        self._iterator.set_state({"next_index": self._taken})
        if state["processes"] != self._processes:
            logger.info(
                "The images were read by %d processes and are now read by %d: each takes another slice of "
                "the batches, whose order stays; it resumes with batch %d.",
                *(state["processes"], self._processes, self._taken + 1),
            )

    def close(self) -> None:
        """End threads and worker processes; reads that do not end are given up."""
        if self._workers:
            self._workers.close()
        self._readers.close()
        self._waiting.close()
        self._iterator.close()
