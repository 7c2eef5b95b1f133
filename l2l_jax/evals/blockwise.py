"""A compiled function over all images of a set, on this process's devices."""

from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from l2l_jax.evals.image_set import Images, ImageSet
from l2l_jax.models.base import Params


class Blockwise:
    """Computes something of every image, batch by batch; compiled once for any number of models.

    Every process computes all of it: what one has, all have.

    Args:
      compute: `(params, images [batch, height, width, channel], rng) -> arrays [batch, …] by name`.
      batch_size: images per compiled call; divided among the process's devices if it can be.
      seed: of what `compute` draws; the same images are given the same draw, whatever the parameters.
    """

    def __init__(
        self,
        compute: Callable[[Params, jax.Array, jax.Array], dict[str, jax.Array]],
        batch_size: int,
        seed: int,
    ):
        devices = jax.local_devices()
        if batch_size % len(devices):
            devices = devices[:1]
        mesh = Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
        self._rows = NamedSharding(mesh, PartitionSpec("data"))
        self._whole = NamedSharding(mesh, PartitionSpec())
        self._batch_size = batch_size

        @jax.jit
        def compute_batch(params, images, number):
            return compute(params, images, jax.random.fold_in(jax.random.key(seed), number))

        self._compute = compute_batch

    def __call__(self, params: Params, images: ImageSet) -> Iterator[tuple[Images, dict[str, np.ndarray]]]:
        """The images that can be decoded, and what was computed of them, as host arrays."""
        placed = jax.device_put(params, self._whole)
        for block in images.blocks(self._batch_size):
            rows = block.good.images
            padding = [(0, self._batch_size - len(rows))] + [(0, 0)] * 3  # one shape: compiled once
            rows = jax.device_put(np.pad(rows, padding), self._rows)
            computed = jax.device_get(self._compute(placed, rows, np.int32(block.number)))
            count = len(block.good.labels)
            yield block.good, {name: x[:count] for name, x in computed.items()}
