"""What a model makes of image sets, image by image, and how that is kept."""

import pathlib
from collections.abc import Mapping

import numpy as np

from l2l_jax.config import Config
from l2l_jax.data.records import Source
from l2l_jax.errors import UserError
from l2l_jax.evals import metrics
from l2l_jax.evals.evaluator import Evaluation
from l2l_jax.evals.image_set import ImageSet
from l2l_jax.models.base import Params
from l2l_jax.utils.progress import Progress

SETS = ("retain", "forget")
"""The sets of test images that models are measured on."""

Measured = Mapping[str, Mapping[str, np.ndarray]]
"""By set, then by name: "mse", mask error of each image; "right", whether its class was read rightly from the
mask (where there is a classifier); arrays `[image]`."""

Points = dict[str, Measured]
"""What an attack left behind, by the name of the point at which was measured: a step, a layer, a view."""


class Meter:
    """Measures models on the mask of an evaluation; every process gets all results.

    Args:
      config: how images are prepared.
      evaluation: its test images, mask and classifier.

    Raises:
      UserError: images have masks of their own.
    """

    def __init__(self, config: Config, evaluation: Evaluation):
        self._config, self._evaluation = config, evaluation
        self._inpainter = evaluation.inpainter
        if evaluation.inpainter.mask is None:
            raise UserError(
                f"The first of config.evaluate.tasks is {evaluation.inpainter.task.name}, which hides other "
                "patches of each image; an audit needs one hole for all, such as centre_8."
            )
        self.mask = evaluation.inpainter.mask

    @property
    def forget(self) -> ImageSet:
        """The forget test images."""
        return self._evaluation.tests["forget"]

    def tests(self, params: Params, title: str) -> Measured:
        """Of the retain and forget test images; `title` is shown meanwhile."""
        return {of: self.images(params, self._evaluation.tests[of], of, title) for of in SETS}

    def images(self, params: Params, images: ImageSet, of: str, title: str) -> Mapping[str, np.ndarray]:
        """Of the images of a set; `of` is its name, on which what is drawn depends."""
        placed, blocks = self._inpainter.place(params), []
        with Progress(f"{title}, {of}", len(images), unit="image") as progress:
            for originals, restored in self._inpainter.over(placed, images, of):
                measured = {"mse": metrics.masked_mse(originals.images, restored, self.mask)}
                right = self.right(restored, originals.labels)
                blocks.append(measured if right is None else {**measured, "right": right})
                progress.update(len(restored))
        return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}

    def right(self, restored: np.ndarray, labels: np.ndarray) -> np.ndarray | None:
        """Whether the class of each image is read rightly from its mask, bool `[image]`, or None."""
        return self._evaluation.correct(restored, labels)

    def shown(self, params: Params) -> dict[str, np.ndarray]:
        """Restorations of the images that pictures show, by set."""
        placed = self._inpainter.place(params)
        return {
            of: self._inpainter(placed, few, of) for of, few in self._evaluation.shown.items() if of in SETS
        }

    def image_set(self, source: Source, name: str) -> ImageSet:
        """Images of a source, prepared as test images are; `name` is for messages."""
        return ImageSet.of(self._config, source, name)


def save_points(path: pathlib.Path, points: Points) -> None:
    """Keep points in an .npz file that appears when it is complete."""
    arrays = {
        f"{point}/{of}/{name}": values
        for point, sets in points.items()
        for of, measured in sets.items()
        for name, values in measured.items()
    }
    unfinished = path.with_name(path.name + ".unfinished")
    with unfinished.open("wb") as file:
        np.savez_compressed(file, **arrays)
    unfinished.replace(path)


def load_points(path: pathlib.Path) -> Points:
    """What `save_points` kept."""
    points: dict = {}
    with np.load(path) as arrays:
        for key in arrays.files:
            point, of, name = key.split("/")
            points.setdefault(point, {}).setdefault(of, {})[name] = arrays[key]
    return points
