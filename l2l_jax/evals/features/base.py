"""The interface of networks that compute features of images, and how they run."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from l2l_jax.evals.runner import BatchedRunner
from l2l_jax.train.concurrent import threads
from l2l_jax.utils.runtime import usable_cpus

PER_THREAD = 2
"""Images per compiled call where a CPU runs several calls at the same time: XLA's convolutions leave cores
idle, and the data of few images stays in caches."""

Outputs = dict[str, Any]
"""Arrays that start with the image axis: "features" `[image, feature]`, float32; "probabilities"
`[image, class]`, float32, of networks that have classes; "classes", class ids `[image]`, of classifiers of a
masked region."""


class FeatureNetwork(Protocol):
    """A trained network that evaluates images.

    `name` is its name in reports, `weights` are JSON-able facts about its weights: `file`, `sha256`,
    `licence`, and what else is known.
    """

    name: str
    weights: Mapping[str, Any]

    def __call__(self, images: np.ndarray) -> Outputs:
        """Return the outputs of any number of images, each array a NumPy array.

        Args:
          images: uint8 `[image, height, width, 3]`, red, green, blue. The network resizes them itself.

        Raises:
          ValueError: Images of another type or shape.
        """
        ...


class BatchedNetwork:
    """A `FeatureNetwork` that runs on this process's devices in batches of one shape.

    Outputs do not depend on how many images come at a time, up to rounding. On a CPU, each core computes a
    batch of its own, of at most `PER_THREAD` images. `apply` is `(params, uint8 images) -> Outputs`.
    """

    def __init__(
        self,
        name: str,
        weights: Mapping[str, Any],
        params: Any,
        apply: Callable[[Any, jax.Array], Outputs],
        batch_size: int,
    ):
        def precise(params: Any, images: jax.Array) -> Outputs:
            with jax.default_matmul_precision("highest"):  # GPUs and TPUs would round to fewer bits
                return apply(params, images)

        self.name, self.weights = name, weights
        cores = threads(len(usable_cpus()))
        batch_size = batch_size if cores == 1 else min(batch_size, PER_THREAD)
        self._runner = BatchedRunner(precise, batch_size, threads=cores)
        self._params = self._runner.place(params)

    def __call__(self, images: np.ndarray) -> Outputs:
        """See `FeatureNetwork`."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(
                f"expected uint8 images [image, height, width, 3], got {images.dtype} {images.shape}"
            )
        return self._runner(self._params, images)
