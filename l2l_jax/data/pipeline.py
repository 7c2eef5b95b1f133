"""Training batches with grain: balanced, seeded, sharded by process, resumable."""

from collections.abc import Mapping

import grain
import numpy as np

from l2l_jax.data.order import EpochOrder
from l2l_jax.data.sources import Source

PREFETCH = 16
"""Batches read ahead; enough to hide the host's work behind a step."""

ENDLESS = 2**48
"""Batches after which a stream ends: more than anyone trains on."""


def training_batches(
    sets: Mapping[str, Source],
    batch_size: int,
    *,
    value_range: tuple[float, float],
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.IterDataset:
    """An endless stream of `{set: images [rows, height, width, channel]}`, float32.

    Every set is shuffled anew in each epoch and repeated, so that all sets give equally many images
    to a batch: the smaller one is oversampled. The order of the global batches depends on `seed`
    alone; process p of n gets the p-th of n equal slices of each, and reads no other image.

    Args:
      sets: sources by name; their records' images are in [0, 1].
      batch_size: images per set in the global batch.
      value_range: range of the images returned.
      seed: seed of the order.
      process_index, process_count: this process and how many there are.

    Returns:
      A dataset whose iterators have `get_state` and `set_state`.

    Raises:
      ValueError: `batch_size` is not a multiple of `process_count`.
    """
    if batch_size % process_count:
        raise ValueError(f"batch_size {batch_size} is not a multiple of {process_count} processes")
    seeds = np.random.SeedSequence(seed).generate_state(len(sets))
    orders = {name: EpochOrder(len(sets[name]), int(s)) for name, s in zip(sets, seeds, strict=True)}
    rows = batch_size // process_count

    def read(batch: int) -> dict[str, np.ndarray]:
        positions = np.arange(rows) + (batch * batch_size + process_index * rows)
        return {
            name: in_range(np.stack([source[i]["image"] for i in orders[name](positions)[1]]), value_range)
            for name, source in sets.items()
        }

    # One element is one batch: grain's own shuffling costs more for each image than a small step has.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=PREFETCH)
    return grain.MapDataset.range(ENDLESS).map(read).to_iter_dataset(options)


def in_range(image: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    """An image in [0, 1] brought to `value_range`, float32."""
    low, high = value_range
    return (low + (high - low) * image).astype(np.float32)


def load_images(source: Source, value_range: tuple[float, float]) -> np.ndarray:
    """All images of a source `[record, height, width, channel]` in `value_range`, in order."""
    return np.stack([in_range(source[i]["image"], value_range) for i in range(len(source))])
