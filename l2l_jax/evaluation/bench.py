"""Everything needed to judge models of one configuration, opened and compiled once."""

import functools
from typing import Any, NamedTuple

import numpy as np

from l2l_jax.collectives import from_writer
from l2l_jax.config import Config
from l2l_jax.data.pipeline import load_images
from l2l_jax.data.sources import open_source
from l2l_jax.data.splits import evaluation_sets
from l2l_jax.evaluation.evaluate import Evaluator, ImageSet
from l2l_jax.evaluation.restoration import Restorer
from l2l_jax.models.base import Params


class Judgement(NamedTuple):
    """What a model does to the test images.

    Attributes:
      figures: by set ("retain", "forget"), then by name of the figure.
      restored: restorations `[image, height, width, channel]` by set.
    """

    figures: dict[str, dict[str, float]]
    restored: dict[str, np.ndarray]


class Bench:
    """The image sets of a configuration, its hole, and the classifiers that judge restorations.

    Attributes:
      train: the source of all training images.
      tests: test images by set.
      restorer: fills the hole of `config.evaluate`.
      class_names: names of the class ids.
    """

    def __init__(self, config: Config):
        model, data = config.model, config.data
        self.train = open_source(data, "train", model.image_size)
        test = open_source(data, "test", model.image_size)
        self.class_names = test.class_names
        self.tests = {
            of: ImageSet(load_images(source, model.value_range), source.labels)
            for of, source in evaluation_sets(data, test)._asdict().items()
        }
        self.restorer = Restorer(
            model, config.evaluate.hole_mask(model.image_size),
            batch_size=config.evaluate.batch_size, seed=config.seed,
        )  # fmt: skip

    @functools.cached_property
    def evaluator(self) -> Evaluator:
        """The classifiers; training them takes some seconds."""
        return Evaluator(self.train, self.restorer.hole, self.restorer.value_range)

    def judge(self, params: Params, name: str) -> Judgement:
        """Restore all test images and measure the result; `name` is shown meanwhile.

        All processes restore; one measures and tells the others.
        """
        restored = {
            of: self.restorer(params, images.images, f"restore {of} ({name})")
            for of, images in self.tests.items()
        }
        figures = from_writer(
            lambda: {of: self.evaluator.measure(self.tests[of], images) for of, images in restored.items()}
        )
        return Judgement(figures, restored)

    def ceiling(self) -> dict[str, Any]:
        """What the real images reach, by set: see `Evaluator.ceiling`."""
        return {of: self.evaluator.ceiling(images) for of, images in self.tests.items()}
