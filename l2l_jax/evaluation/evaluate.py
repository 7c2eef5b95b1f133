"""Everything needed to evaluate models of one configuration, opened and compiled once."""

import functools
import logging
from typing import Any, NamedTuple

import numpy as np

from l2l_jax.collectives import from_writer, is_writer
from l2l_jax.config import Config
from l2l_jax.data.records import Source
from l2l_jax.data.sources import open_source
from l2l_jax.data.splits import evaluation_sets
from l2l_jax.data.transforms import Transform
from l2l_jax.evaluation.figures import LEAST_IMAGES, Evaluator
from l2l_jax.evaluation.image_set import Images, ImageSet
from l2l_jax.evaluation.restoration import Restorer
from l2l_jax.models.base import Params
from l2l_jax.progress import Progress

logger = logging.getLogger(__name__)

CLASSIFIER_IMAGES = 5000
"""Training images that the classifiers are trained on, at most; evenly spaced."""


class ModelFigures(NamedTuple):
    """What a model does to the test images.

    Attributes:
      figures: by set ("retain", "forget"), then by name of the figure.
      shown: restorations `[image, height, width, channel]` of the images of `Evaluation.shown`, by set.
    """

    figures: dict[str, dict[str, float]]
    shown: dict[str, np.ndarray]


class Evaluation:
    """The image sets of a configuration, its hole, and the classifiers that measure restorations.

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
        sets = evaluation_sets(data, test)._asdict()
        self.tests = {of: self._image_set(config, source, f"{of} test") for of, source in sets.items()}
        self.restorer = Restorer(
            model, config.evaluate.hole_mask(model.image_size),
            batch_size=config.evaluate.batch_size, seed=config.seed,
        )  # fmt: skip
        self._config = config

    @staticmethod
    def _image_set(config: Config, source: Source, name: str) -> ImageSet:
        transform = Transform(config.data, config.model.image_size, training=False)
        bad = config.data.max_bad_fraction
        return ImageSet(source, transform, config.model.value_range, max_bad_fraction=bad, name=name)

    @functools.cached_property
    def evaluator(self) -> Evaluator:
        """Measures restorations; training its classifiers takes some seconds."""
        train = self._classifier_images() if self._config.evaluate.features == "classifier" else None
        return Evaluator(self.restorer.hole, self.restorer.value_range, train)

    def _classifier_images(self) -> Images | None:
        few = [f"{len(images)} {of}" for of, images in self.tests.items() if len(images) < LEAST_IMAGES]
        if few:
            logger.warning(
                "No FID, Inception Score and accuracy: they need %d test images of each set; there are %s.",
                LEAST_IMAGES, " and ".join(few),
            )  # fmt: skip
            return None
        labels = np.concatenate([images.labels for images in self.tests.values()])
        members = np.flatnonzero(np.isin(self.train.labels, labels))
        if len(members) > CLASSIFIER_IMAGES:
            members = members[np.linspace(0, len(members) - 1, CLASSIFIER_IMAGES).astype(int)]
        return self._image_set(self._config, self.train, "training").read(members)

    @functools.cached_property
    def shown(self) -> dict[str, Images]:
        """The test images that pictures show, by set."""
        per_class = self._config.evaluate.picture_per_class
        return {of: images.first_of_each_class(per_class) for of, images in self.tests.items()}

    def evaluate(self, params: Params, name: str) -> ModelFigures:
        """Restore all test images and measure the result; `name` is shown meanwhile.

        All processes restore; one measures and tells the others.
        """
        evaluated = {of: self._evaluate_set(params, of, f"restore {of} ({name})") for of in self.tests}
        figures = from_writer(
            lambda: {of: self.evaluator.figures(seen) for of, (seen, _) in evaluated.items()}
        )
        return ModelFigures(figures, {of: shown for of, (_, shown) in evaluated.items()})

    def _evaluate_set(self, params, of, title):
        """What the writer observed of a set, block by block, and the restorations to show."""
        observed, kept, wanted = [], {}, set(self.shown[of].indices)
        params = self.restorer.place(params)
        with Progress(title, len(self.tests[of]), unit="image") as progress:
            for block in self.tests[of].blocks(self.restorer.block_size):
                restored = self.restorer(params, block.padded, block.first)[block.places]
                if is_writer():
                    observed.append(self.evaluator.observe(block.good, restored))
                images = zip(block.good.indices, restored, strict=True)
                kept |= {index: image for index, image in images if index in wanted}
                progress.update(len(block.padded))
        return observed, np.stack([kept[index] for index in self.shown[of].indices])

    def ceiling(self) -> dict[str, Any]:
        """What the real images reach, by set: the classifiers' figures of them; empty without classifiers."""
        if not self.evaluator.has_classifiers:
            return {}
        figures = {}
        for of, images in self.tests.items():
            blocks = (block.good for block in images.blocks(self.restorer.block_size))
            real = self.evaluator.figures([self.evaluator.observe(block, block.images) for block in blocks])
            figures[of] = {name: real[name] for name in ("inception_score", "accuracy")}
        return figures
