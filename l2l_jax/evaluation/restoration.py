"""Restoring whole image sets."""

import jax
import numpy as np

from l2l_jax.models.base import ImageToImageModel, Params
from l2l_jax.progress import Progress


class Restorer:
    """Fills one hole in many images; compiled once, used for the original and unlearned model.

    Args:
      model: the model.
      hole: bool `[height, width]`, True where pixels are missing.
      batch_size: images per compiled call.
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
        """Restorations `[image, height, width, channel]`; `title` names the progress bar."""
        size = self._batch_size
        params = jax.device_put(params)
        restored = []
        with Progress(title, len(images), unit="image") as progress:
            for index, start in enumerate(range(0, len(images), size)):
                batch = images[start : start + size]
                padding = [(0, size - len(batch))] + [(0, 0)] * 3  # one shape: compiled once
                out = self._restore(params, np.pad(batch, padding), np.int32(index))
                restored.append(np.asarray(out)[: len(batch)])
                progress.update(len(batch))
        return np.concatenate(restored)
