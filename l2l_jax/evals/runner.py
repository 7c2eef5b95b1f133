"""Batched evaluation of a compiled function over any number of rows, on this process's devices."""

import functools
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from l2l_jax.evals.image_set import Images, ImageSet
from l2l_jax.models.base import Params
from l2l_jax.train.concurrent import in_threads

Rows = Any  # A tree of arrays `[row, …]`


class BatchedRunner:
    """A function of parameters and rows that is evaluated in batches of one shape.

    It is compiled once for each row shape. An incomplete last batch is padded, and the padding is removed
    from the outputs. Every process computes all rows that it is given, without communication.

    Args:
      compute: `(params, rows) -> outputs`, trees of arrays `[row, …]`; an output depends only on its row.
      batch_size: Number of rows per compiled call; sharded over the process's devices if divisible.
      threads: Number of batches to compute at the same time.
    """

    def __init__(self, compute: Callable[[Params, Rows], Rows], batch_size: int, *, threads: int = 1):
        devices = jax.local_devices()
        if batch_size % len(devices):
            devices = devices[:1]
        mesh = Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
        self._sharded = NamedSharding(mesh, PartitionSpec("data"))
        self._replicated = NamedSharding(mesh, PartitionSpec())
        self.batch_size, self._threads = batch_size, threads
        self.program = jax.jit(compute)

    def place(self, params: Params) -> Params:
        """Copy parameters to this process's devices."""
        return jax.device_put(params, self._replicated)

    def __call__(self, params: Params, rows: Rows) -> Rows:
        """Return the outputs of any number of rows as host arrays; `params` come from `place`."""
        first, *others = (
            functools.partial(self._run, params, rows, start)
            for start in range(0, max(1, len(jax.tree.leaves(rows)[0])), self.batch_size)
        )
        batches = [first(), *in_threads(others, self._threads)]  # the first call compiles
        return jax.tree.map(lambda *parts: np.concatenate(parts), *batches) if others else batches[0]

    def _run(self, params: Params, rows: Rows, start: int) -> Rows:
        rows = jax.tree.map(lambda x: x[start : start + self.batch_size], rows)
        count = len(jax.tree.leaves(rows)[0])
        missing = self.batch_size - count
        padded = jax.tree.map(lambda x: np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)), rows)
        outputs = self.program(params, jax.device_put(padded, self._sharded))
        return jax.tree.map(lambda x: np.asarray(x)[:count], outputs)

    def over(self, params: Params, images: ImageSet, set_name: str) -> Iterator[tuple[Images, Rows]]:
        """Yield batches of the decodable images of a set with their outputs.

        Random draws depend on the set's name.
        """
        placed = self.place(params)
        for block in images.blocks(self.batch_size):
            if len(block.good.labels):
                yield block.good, self(placed, image_rows(block.good, set_name))


def set_number(set_name: str) -> int:
    """Return a hash of a set's name that is the same in every process."""
    return zlib.crc32(set_name.encode())


def image_rows(images: Images, set_name: str) -> dict[str, np.ndarray]:
    """Return the rows for `per_image`: images, their indices in their set, and the set's number."""
    indices = np.asarray(images.indices, np.int32)
    sets = np.full(indices.shape, set_number(set_name), np.uint32)
    return {"images": images.images, "places": indices, "sets": sets}


def image_keys(seed: int, rows: dict[str, jax.Array]) -> jax.Array:
    """Return a random key for each image, which depends only on the seed, the set and the image's index."""
    of_sets = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), rows["sets"])
    return jax.vmap(jax.random.fold_in)(of_sets, rows["places"])


def per_image(
    function: Callable[[Params, jax.Array, jax.Array], Rows], seed: int
) -> Callable[[Params, Rows], Rows]:
    """Vectorize a function of a single image to a `compute` argument for `BatchedRunner.over`.

    The function is `(params, image [height, width, channel], key) -> outputs`. Its draws do not depend on
    batches, devices, processes or models.
    """

    def compute(params, rows):
        return jax.vmap(function, (None, 0, 0))(params, rows["images"], image_keys(seed, rows))

    return compute
