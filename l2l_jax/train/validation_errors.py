"""Masked errors of a model during training, measured on the training devices."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from l2l_jax.models.adapters import without_adapter
from l2l_jax.models.base import Model, Params
from l2l_jax.train.parallel import Parallel


class MaskedErrors:
    """Asynchronous measurement of mean squared errors in the masked region of a fixed set of images.

    The images stay on the devices. Every image has a fixed key, so models are compared with the same random
    draws, regardless of the layout of the devices.

    Args:
      model: Model, without parameters.
      mask: Bool `[height, width]`, True where pixels are missing.
      images: `[image, height, width, channel]` by set, the same in every process.
      rows: Maximum number of images per compiled call; a multiple of the number of devices.
      seed: Random seed for sampling.
      parallel: Devices and kind of parallelism.
    """

    def __init__(
        self,
        model: Model,
        mask: np.ndarray,
        images: Mapping[str, np.ndarray],
        *,
        rows: int,
        seed: int,
        parallel: Parallel,
    ):
        mask = np.asarray(mask, bool)

        def measure(params, rows):
            params = without_adapter(params)

            def inpainted(image, number):
                rng = jax.random.fold_in(jax.random.key(seed), number)
                return model.inpaint(params, image[None], mask, rng)[0]

            errors = jax.vmap(inpainted)(rows["images"], rows["numbers"]) - rows["images"]
            return jnp.square(errors[:, mask]).mean(axis=(1, 2))

        self._counts = {name: len(chosen) for name, chosen in images.items()}
        self._measure = parallel.compile_measure(measure)
        self._chunks = [parallel.rows(chunk) for chunk in _chunks(images, rows, parallel.mesh.size)]

    def start(self, params: Params) -> list[jax.Array]:
        """Dispatch the measurement of a model, given all parts and any adapter, which may then be donated."""
        return [self._measure(params, chunk) for chunk in self._chunks]

    def finish(self, started: list[jax.Array]) -> dict[str, np.ndarray]:
        """Wait for a measurement and return float64 errors `[image]` by set, the same in every process."""
        errors = np.concatenate([np.asarray(x, np.float64) for x in jax.device_get(started)])
        ends = np.cumsum(list(self._counts.values()))
        return dict(zip(self._counts, np.split(errors[: ends[-1]], ends[:-1]), strict=True))


def _chunks(images: Mapping[str, np.ndarray], rows: int, devices: int) -> list[dict[str, np.ndarray]]:
    """Split this process's rows of the images of all sets into chunks of equal size."""
    joined = np.concatenate(list(images.values()))
    count = -(-len(joined) // rows)
    size = devices * -(-len(joined) // (count * devices))
    missing = count * size - len(joined)
    joined = np.concatenate([joined, np.zeros((missing, *joined.shape[1:]), joined.dtype)])
    numbers = np.arange(len(joined), dtype=np.int32)
    share = size // jax.process_count()
    first = range(jax.process_index() * share, len(joined), size)
    return [{"images": joined[i : i + share], "numbers": numbers[i : i + share]} for i in first]
