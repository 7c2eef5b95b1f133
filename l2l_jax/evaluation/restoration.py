"""Restoring whole image sets, each process and each of its devices a share."""

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from l2l_jax.models.base import ImageToImageModel, Params


class Restorer:
    """Fills one hole in many images; compiled once, used for the original and unlearned model.

    Args:
      model: the model.
      hole: bool `[height, width]`, True where pixels are missing.
      batch_size: images per compiled call; divided among the process's devices if it can be.
      seed: seed of any sampling.
    """

    def __init__(self, model: ImageToImageModel, hole: np.ndarray, *, batch_size: int, seed: int):
        self.hole, self.value_range = hole, model.value_range
        self._batch_size, self._seed = batch_size, seed

        @jax.jit
        def restore(params, images, batch_index):
            rng = jax.random.fold_in(jax.random.key(seed), batch_index)
            return model.restore(params, images, hole, rng)

        self._restore = restore

    def seen(self, images: np.ndarray) -> np.ndarray:
        """The images with the hole painted mid-grey: a picture of what the model is shown."""
        return np.where(self.hole[None, ..., None], np.float32(np.mean(self.value_range)), images)

    @property
    def block_size(self) -> int:
        """How many images all processes together restore in one call."""
        return self._batch_size * jax.process_count()

    def place(self, params: Params) -> Params:
        """Parameters on this process's devices."""
        return jax.device_put(params, self._sharding(PartitionSpec()))

    def __call__(self, params: Params, images: np.ndarray, first: int) -> np.ndarray:
        """Restorations `[image, height, width, channel]` of at most `block_size` images, in every process.

        Process p restores the p-th batch of the block. Which images share a batch, and the key of a batch,
        do not depend on the number of processes.

        Args:
          params: all parts, from `place`.
          images: `[image, height, width, channel]`, the same in every process.
          first: the place of the block in its set, a multiple of `block_size`.
        """
        size, start = self._batch_size, jax.process_index() * self._batch_size
        batch = images[start : start + size]  # empty in the last round of some processes
        padding = [(0, size - len(batch))] + [(0, 0)] * 3  # one shape: compiled once
        batch = jax.device_put(np.pad(batch, padding), self._sharding(PartitionSpec("data")))
        restored = np.asarray(self._restore(params, batch, np.int32((first + start) // size)))
        if jax.process_count() > 1:
            restored = multihost_utils.process_allgather(restored, tiled=True)
        return restored[: len(images)]

    def _sharding(self, spec: PartitionSpec) -> NamedSharding:
        """Of this process's devices; of one of them if they cannot share a batch evenly."""
        devices = jax.local_devices()
        if self._batch_size % len(devices):
            devices = devices[:1]
        return NamedSharding(Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,)), spec)
