"""Restoring whole image sets, each process and each of its devices a share."""

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from l2l_jax.models.base import ImageToImageModel, Params
from l2l_jax.progress import Progress


class Restorer:
    """Fills one hole in many images; compiled once, used for the original and unlearned model.

    Args:
      model: the model.
      hole: bool `[height, width]`, True where pixels are missing.
      batch_size: images per compiled call; divided among the process's devices if it can be.
      seed: seed of any sampling.
    """

    def __init__(
        self, model: ImageToImageModel, hole: np.ndarray, *, batch_size: int, seed: int
    ):
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

    def __call__(self, params: Params, images: np.ndarray, title: str) -> np.ndarray:
        """Restorations `[image, height, width, channel]`, in every process; `title` names the progress bar.

        Process p of n restores every n-th batch from the p-th on. Which images share a batch, and the key of
        a batch, do not depend on n.
        """
        size, index, count = self._batch_size, jax.process_index(), jax.process_count()
        params = jax.device_put(params, self._sharding(PartitionSpec()))
        restored = []
        with Progress(title, len(images), unit="image") as progress:
            for first in range(0, len(images), size * count):
                start = first + index * size
                batch = images[start : start + size]  # empty in the last round of some processes
                padding = [(0, size - len(batch))] + [(0, 0)] * 3  # one shape: compiled once
                batch = jax.device_put(np.pad(batch, padding), self._sharding(PartitionSpec("data")))
                out = np.asarray(self._restore(params, batch, np.int32(start // size)))
                if count > 1:
                    out = multihost_utils.process_allgather(out, tiled=True)
                restored.append(out[: len(images) - first])
                progress.update(len(restored[-1]))
        return np.concatenate(restored)

    def _sharding(self, spec: PartitionSpec) -> NamedSharding:
        """Of this process's devices; of one of them if they cannot share a batch evenly."""
        devices = jax.local_devices()
        if self._batch_size % len(devices):
            devices = devices[:1]
        return NamedSharding(Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,)), spec)
