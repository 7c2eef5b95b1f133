"""Balanced, seeded, resumable training batches with grain, sharded by process."""

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
ENDLESS = 2**48  # number of batches in a stream, practically infinite
CHUNK = 16  # images that a worker reads at a time, to spread a batch over all workers
# Memory for prefetched batches, and their minimum and maximum number
AHEAD_BYTES, AHEAD = 256 * 2**20, (2, 16)
# Seconds to wait for a batch after a stop signal; must be less than `stopping.GRACE_SECONDS`
STOP_AFTER = 5.0
Submit = Callable[[Sequence[Row]], "Future[Rows]"]


@dataclasses.dataclass(frozen=True)
class LoaderOptions:
    """Settings of one process's batch loading."""

    bad_folder: pathlib.Path | None = None  # folder of the lists of bad images, see `BadImages`
    max_bad_fraction: float = 0.0  # maximum fraction of a set's images that cannot be decoded
    workers: int = 0  # processes that read and decode; 0 uses threads
    process_index: int = 0
    process_count: int = 1


class EpochOrder:
    """A new permutation of `count` images for every epoch, determined by `seed` and the epoch.

    The permutation of an epoch is generated once and cached: 10 MB for 1.28 million images. It sorts raw
    words of a bit generator, because NumPy guarantees stable streams across versions for these but not for
    `Generator.permutation`.
    """

    def __init__(self, count: int, seed: int):
        self.count, self.seed = count, seed
        self._permutation = functools.lru_cache(maxsize=2)(self._draw)  # prefetching spans two epochs

    def _draw(self, epoch: int) -> np.ndarray:
        words = np.random.Philox(np.random.SeedSequence((self.seed, epoch))).random_raw(self.count)
        return np.argsort(words, kind="stable")

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return epochs and indices (0 … count − 1) at `positions` of the stream, all `[place]`."""
        epochs, places = np.divmod(np.asarray(positions, np.int64), self.count)
        indices = np.empty_like(places)
        for epoch in np.unique(epochs):
            in_epoch = epochs == epoch
            indices[in_epoch] = self._permutation(int(epoch))[places[in_epoch]]
        return epochs, indices


class Batches(Protocol):
    """Endless batches `{set: rows of this process}`, with iterators like `BatchIterator`."""

    @property
    def value_range(self) -> tuple[float, float]:
        """Range of float images, to which the step must also scale uint8 images."""
        ...

    def __iter__(self) -> Any: ...


class TrainingBatches:
    """An endless stream of `{set: images [rows, height, width, channel]}`; iterating over it starts reading.

    Images from files are uint8, which takes a quarter of the memory; the step scales them to `value_range`.
    Images of sources with float arrays are float32, already in `value_range`.

    Every set is reshuffled in each epoch and repeated. All sets contribute equally many images to a batch,
    so smaller sets are oversampled. The images of a global batch and their crops depend only on `seed`.
    Process p of n gets the p-th of n equal slices of each batch, its `rows`, and reads no other images.

    An image that cannot be decoded is listed and replaced by another image of its set: the one half an epoch
    later in the epoch's order, or the next good one after that. Batches are therefore always full, the
    positions of other images are unchanged, and the result does not depend on previously found bad images.

    Args:
      sets: Sources by name.
      batch_size: Images per set in the global batch, a multiple of the number of processes.
      value_range: Range of float images, to which the step must also scale uint8 images.
      seed: Seed of the order and of the crops.
      transforms: Transforms to squares of equal size by set; None if the records are arrays of equal size.
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
            raise ValueError(f"batch_size {batch_size} is not divisible by {options.process_count} processes")
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
        """Return this process's rows of a global batch, and the bad images encountered, by set.

        The rows are None if there are too many bad images.
        """
        positions = number * self.batch_size + np.asarray(self.rows)
        chunk = CHUNK if self.workers else len(positions)  # threads read several batches in parallel
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
        """Return the replacement of a bad image; None if there are too many bad images."""
        count = self.orders[name].count
        epoch, place = divmod(position, count)
        for step in range(count):
            if len(set(bad)) > self.bad_images.limit(name):
                break
            candidate = epoch * count + (place + count // 2 + step) % count
            (square,) = submit(self._rows(name, np.array([candidate]))).result()
            if not isinstance(square, BadImage):
                return square
            bad.append(square)
        return None


class BatchIterator:
    """An iterator over `TrainingBatches`, whose state is the number of consumed global batches.

    The state does not depend on the number of processes or workers: a run with other numbers resumes with
    the next global batch.
    """

    def __init__(self, batches: TrainingBatches):
        self._batches, self._taken = batches, 0
        self._processes = batches.batch_size // len(batches.rows)
        self._workers = WorkerPool(batches.reader, batches.workers) if batches.workers else None
        threads = batches.workers or min(4, len(usable_cpus()))
        self._readers, self._waiting = DaemonPool(threads, "l2l_jax-reader"), DaemonPool(1, "l2l_jax-batch")
        submit = functools.partial(self._readers.submit, (self._workers or batches.reader).read)
        # One element is one batch, because grain's per-image shuffling would be slower than a small step.
        numbers = grain.MapDataset.range(ENDLESS).map(lambda number: batches.read(number, submit))
        at_a_time = 2 if self._workers else threads  # two batches keep workers busy
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
          Interrupted: A stop signal was received, and no batch arrived for `STOP_AFTER` seconds.
        """
        future, waited = self._waiting.submit(next, self._iterator), 0.0
        while not wait([future], timeout=STOP_AFTER / 10).done:
            signal_number = asked_to_stop()
            waited += STOP_AFTER / 10 if signal_number is not None else 0
            if signal_number is not None and waited > STOP_AFTER:
                raise Interrupted(self._taken, signal_number)
        images, bad = future.result()
        for name, bad_images in bad.items():
            self._batches.bad_images.record(name, bad_images)
        if images is None:  # `record` counts images of equal names once, so it may not have raised
            raise UserError("There is no image to replace those that cannot be decoded.")
        self._taken += 1
        return images

    @property
    def worker_ids(self) -> list[int]:
        """Process ids of the workers."""
        return self._workers.process_ids if self._workers else []

    def get_state(self) -> dict[str, Any]:
        """Return the JSON-serializable state, which is the same in every process."""
        return {"batches": self._taken, "processes": self._processes}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Resume from the `get_state` of another iterator, with any number of processes."""
        self._taken = state["batches"]
        self._iterator.set_state({"next_index": self._taken})
        if state["processes"] != self._processes:
            logger.info(
                "The images were read by %d processes and are now read by %d. The order of batches is "
                "unchanged, but each process reads different slices. The run resumes with batch %d.",
                *(state["processes"], self._processes, self._taken + 1),
            )

    def close(self) -> None:
        """Stop threads and worker processes; reads that do not finish are abandoned."""
        if self._workers:
            self._workers.close()
        self._readers.close()
        self._waiting.close()
        self._iterator.close()
