"""Restoring images of a set, on this process's devices."""

import zlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from l2l_jax.evals.image_set import Images, ImageSet
from l2l_jax.evals.tasks import Task, patch_masks
from l2l_jax.models.base import Model, Params


class Restorer:
    """Fills the masks of a task; compiled once, used for the original and unlearned model.

    What is drawn for an image, sampling and random patches alike, depends on the seed, the image's set and
    its place there, and on nothing else: not on batches, devices, processes or models.

    Args:
      model: the model.
      task: what is hidden.
      batch_size: images per compiled call; divided among the process's devices if it can be.
      seed: seed of any sampling.

    Attributes:
      program: what is compiled: `(params, images, visible patches, number of the set, places)` to the
        restored images.
    """

    def __init__(self, model: Model, task: Task, *, batch_size: int, seed: int):
        self.task, self.value_range = task, model.value_range
        self._model, self._batch_size, self._seed = model, batch_size, seed
        self._mask = None if task.is_random else task.mask(model.image_size)

        def inpaint(params, image, seen, key):
            if self._mask is None:
                return model.inpaint_from_patches(params, image[None], seen[None])[0]
            return model.inpaint(params, image[None], self._mask, key)[0]

        @jax.jit
        def restore_batch(params, images, seen, set_number, places):
            key = jax.random.fold_in(jax.random.key(seed), set_number)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)
            return jax.vmap(inpaint, (None, 0, 0, 0))(params, images, seen, keys)

        self.program = restore_batch

    @property
    def mask(self) -> np.ndarray | None:
        """The mask of all images, bool `[height, width]`; None: every image has its own."""
        return self._mask

    def masks(self, of: str, places: np.ndarray) -> np.ndarray:
        """The masks of images, bool `[image, height, width]`, True where pixels are missing.

        Args:
          of: name of their set.
          places: their places in it.
        """
        if self._mask is not None:
            return np.broadcast_to(self._mask, (len(places), *self._mask.shape))
        return patch_masks(self._visible(of, places), self._model.grid, self._model.image_size)

    def seen(self, images: np.ndarray, of: str, places: np.ndarray) -> np.ndarray:
        """The images with their masks painted mid-grey: a picture of what the model is shown."""
        grey = np.float32(np.mean(self.value_range))
        return np.where(self.masks(of, places)[..., None], grey, images)

    def place(self, params: Params) -> Params:
        """Parameters on this process's devices."""
        return jax.device_put(params, self._sharding(PartitionSpec()))

    def __call__(self, params: Params, images: np.ndarray, of: str, places: np.ndarray) -> np.ndarray:
        """Restorations `[image, height, width, channel]` of at most `batch_size` images.

        Args:
          params: all parts, from `place`.
          images: `[image, height, width, channel]`.
          of: name of their set.
          places: their places in it.
        """
        missing = self._batch_size - len(images)  # one shape: compiled once
        padded = np.pad(np.asarray(places, np.int32), (0, missing))
        seen = self._visible(of, padded) if self._mask is None else np.zeros((len(padded), 0), np.int32)
        rows = (np.pad(images, [(0, missing)] + [(0, 0)] * 3), seen, padded)
        images, seen, padded = jax.device_put(rows, self._sharding(PartitionSpec("data")))
        restored = self.program(params, images, seen, jnp.uint32(_number(of)), padded)
        return np.asarray(restored)[: len(places)]

    def restore_set(self, params: Params, images: ImageSet, of: str) -> Iterator[tuple[Images, np.ndarray]]:
        """Images of a set and their restorations, a batch at a time; every process gets all.

        Args:
          params: all parts, from `place`.
          images: the set.
          of: its name.
        """
        for block in images.blocks(self._batch_size):
            if len(block.good.labels):
                yield block.good, self(params, block.good.images, of, block.good.indices)

    def _visible(self, of: str, places: np.ndarray) -> np.ndarray:
        seeds = ((self._seed, _number(of), int(place)) for place in places)
        return self.task.visible_patches(self._model.grid**2, seeds)

    def _sharding(self, spec: PartitionSpec) -> NamedSharding:
        """Of this process's devices; of one of them if they cannot share a batch evenly."""
        devices = jax.local_devices()
        if self._batch_size % len(devices):
            devices = devices[:1]
        return NamedSharding(Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,)), spec)


def _number(of: str) -> int:
    """A number for the name of a set."""
    return zlib.crc32(of.encode())
