"""Inpainting of the images of a set, and its error."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from l2l_jax.data.records import Source
from l2l_jax.evals import metrics
from l2l_jax.evals.config import EvaluationSetup
from l2l_jax.evals.image_set import Images, ImageSet
from l2l_jax.evals.runner import BatchedRunner, image_keys, image_rows, set_number
from l2l_jax.evals.tasks import InpaintingTask, parse_tasks, patch_masks
from l2l_jax.models.base import Model, Params


class Inpainter:
    """A function that fills the masked regions of a task; compiled once for any number of models.

    Random draws for an image, both of sampling and of patches, depend only on the seed, the image's set and
    its index in the set, and not on batches, devices, processes or models.

    Attributes:
      mask: Mask of all images, bool `[height, width]`; None if each image has its own mask.
      runner: Runner for rows "images", "places" (indices), "sets" and, for masks per image, "visible".
    """

    def __init__(self, model: Model, task: InpaintingTask, *, batch_size: int, seed: int):
        self.task, self.value_range = task, model.value_range
        self._size, self._seed = model.image_size, seed
        self._grid = model.grid if model.inpaints_from_patches else 0
        self.mask = None if task.is_random else task.mask(model.image_size)

        def inpaint(params, image, visible, key):
            if self.mask is None:
                return model.inpaint_from_patches(params, image[None], visible[None])[0]
            return model.inpaint(params, image[None], self.mask, key)[0]

        def compute(params, rows):
            keys = image_keys(seed, rows)
            return jax.vmap(inpaint, (None, 0, 0, 0))(params, rows["images"], rows["visible"], keys)

        self.runner = BatchedRunner(compute, batch_size)
        self.place = self.runner.place

    def masks(self, set_name: str, indices: np.ndarray) -> np.ndarray:
        """Return the masks of images, given their indices in a set, bool `[image, height, width]`."""
        if self.mask is not None:
            return np.broadcast_to(self.mask, (len(indices), *self.mask.shape))
        return patch_masks(self._visible(set_name, indices), self._grid, self._size)

    def masked(self, images: Images, set_name: str) -> np.ndarray:
        """Return the images with gray masked regions."""
        gray = np.float32(np.mean(self.value_range))
        return np.where(self.masks(set_name, images.indices)[..., None], gray, images.images)

    def __call__(self, params: Params, images: Images, set_name: str) -> np.ndarray:
        """Return reconstructions `[image, height, width, channel]`; `params` come from `place`."""
        visible = self._visible(set_name, images.indices)
        return self.runner(params, image_rows(images, set_name) | {"visible": visible})

    def over(self, params: Params, images: ImageSet, set_name: str) -> Iterator[tuple[Images, np.ndarray]]:
        """Yield batches of the images of a set and their reconstructions; every process gets all batches."""
        params = self.place(params)
        for block in images.blocks(self.runner.batch_size):
            if len(block.good.labels):
                yield block.good, self(params, block.good, set_name)

    def errors(self, params: Params, images: ImageSet, set_name: str) -> np.ndarray:
        """Return the masked MSE of each image of a set, float64 `[image]`."""
        errors = []
        for originals, inpainted in self.over(params, images, set_name):
            masks = self.masks(set_name, originals.indices)
            errors.append(metrics.masked_mse(originals.images, inpainted, masks))
        return np.concatenate(errors)

    def _visible(self, set_name: str, indices: np.ndarray) -> np.ndarray:
        """Return the visible patches `[image, patch]`; empty if all images share a mask."""
        if self.mask is not None:
            return np.zeros((len(indices), 0), np.int32)
        seeds = ((self._seed, set_number(set_name), int(index)) for index in indices)
        return self.task.visible_patches(self._grid**2, seeds)


def masked_errors(
    setup: EvaluationSetup,
    params: Params,
    source: Source,
    inpainter: Any = None,
    set_name: str = "validation",
) -> np.ndarray:
    """Return the masked MSE of each image of a source on the first task, `[image]`.

    The sampling noise depends on `set_name`: with the name that the evaluation uses for a set, the errors are
    those of the evaluation. Passing an `inpainter` of the task avoids compiling another one.
    """
    if inpainter is None:
        task, size = parse_tasks(setup.evaluate.tasks)[0], setup.evaluate.batch_size
        inpainter = Inpainter(setup.model, task, batch_size=size, seed=setup.seed)
    return inpainter.errors(params, ImageSet(setup, source, set_name), set_name)
