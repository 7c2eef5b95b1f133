"""The one interface of networks that turn images into features, and how they run."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from l2l_jax.train.concurrent import in_threads, threads
from l2l_jax.utils.runtime import usable_cpus

PER_THREAD = 2
"""Images per compiled call where a CPU runs several calls at the same time: XLA's convolutions leave cores
idle, and what few images need lies in caches."""

Outputs = Mapping[str, Any]
"""Arrays that start with the image axis: "features" `[image, feature]`, float32, and "probabilities"
`[image, class]`, float32, of networks that have classes."""


class FeatureNetwork(Protocol):
    """A pretrained network that judges images.

    Attributes:
      name: what reports call it, such as "Inception-v3 (FID)".
      weights: JSON-able facts about its weights: `file`, `sha256`, `licence`, and what else is known.
    """

    name: str
    weights: Mapping[str, Any]

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """What the network says of images; any number of them.

        Args:
          images: uint8 `[image, height, width, 3]`, red, green, blue. The network resizes them itself.

        Returns:
          "features" `[image, feature]`, float32; networks with classes also "probabilities" `[image, class]`,
          float32.

        Raises:
          ValueError: images of another type or shape.
        """
        ...


class BatchedNetwork:
    """A `FeatureNetwork` that runs on this process's devices in batches of one shape.

    It is compiled once for each size of images. A last batch that is not full is padded, and the padding cut
    off again: the outputs do not depend on how many images come at a time, but for rounding. On a CPU, each
    core computes a batch of its own.

    Args:
      name, weights: see `FeatureNetwork`.
      params: parameters, placed on the devices.
      apply: `(params, uint8 images [batch, height, width, 3]) -> Outputs`; compiled here.
      batch_size: images per compiled call; divided among the process's devices if it can be. On a CPU with
        several cores it is at most `PER_THREAD`.
    """

    def __init__(
        self,
        name: str,
        weights: Mapping[str, Any],
        params: Any,
        apply: Callable[[Any, jax.Array], Outputs],
        batch_size: int,
    ):
        self.name, self.weights = name, weights
        self._threads = threads(len(usable_cpus()))
        self._batch_size = batch_size if self._threads == 1 else min(batch_size, PER_THREAD)
        devices = jax.local_devices()
        if self._batch_size % len(devices):
            devices = devices[:1]
        mesh = Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
        self._images = NamedSharding(mesh, PartitionSpec("data"))
        self._params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))

        @jax.jit
        def precise(params: Any, images: jax.Array) -> Outputs:
            with jax.default_matmul_precision("highest"):  # GPUs and TPUs would round to fewer bits
                return apply(params, images)

        self._apply = precise

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """See `FeatureNetwork`."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(
                f"expected are uint8 images [image, height, width, 3], not {images.dtype} {images.shape}"
            )
        if not len(images):
            shapes = jax.eval_shape(self._apply, self._params, np.zeros((1, *images.shape[1:]), np.uint8))
            return {name: np.zeros((0, *like.shape[1:]), like.dtype) for name, like in shapes.items()}
        first, *others = (
            functools.partial(self._batch, images[start : start + self._batch_size])
            for start in range(0, len(images), self._batch_size)
        )
        blocks = [first(), *in_threads(others, self._threads)]  # the first compiles
        return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}

    def _batch(self, images: np.ndarray) -> dict[str, np.ndarray]:
        padding = [(0, self._batch_size - len(images))] + [(0, 0)] * 3
        batch = jax.device_put(np.pad(images, padding), self._images)
        outputs = self._apply(self._params, batch)
        return {name: np.asarray(value)[: len(images)] for name, value in outputs.items()}
