"""Evaluating models of one configuration: restoring the test images, observing them, measuring.

Each process restores its share of the blocks of images and keeps what it observes of them on the disk
(`BlockStore`): a killed evaluation resumes where it stopped, and one process reads all blocks in their order,
so that the figures do not depend on how many processes there were. No picture is sent anywhere.
"""

import functools
import hashlib
import json
import logging
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from l2l_jax.config import Config
from l2l_jax.data.sources import open_source
from l2l_jax.data.splits import evaluation_sets, general_set
from l2l_jax.evals import tsne
from l2l_jax.evals.features.base import FeatureNetwork
from l2l_jax.evals.features.digits import DigitClassifier, MaskClassifier
from l2l_jax.evals.figures import (
    SPLITS,
    SetFigures,
    figures_of,
    measure,
    measure_real,
)
from l2l_jax.evals.image_set import Images, ImageSet
from l2l_jax.evals.inpaint import Restorer
from l2l_jax.evals.metrics import to_uint8
from l2l_jax.evals.networks import open_all
from l2l_jax.evals.observing import (
    SHOWN_IMAGES,
    SHOWN_PLACES,
    SKIPPED,
    Model,
    Observer,
    originals_of,
    restored_of,
)
from l2l_jax.evals.tasks import parse_tasks
from l2l_jax.models.base import Params
from l2l_jax.utils.multihost import barrier, from_primary, is_primary, on_primary
from l2l_jax.utils.progress import Progress

logger = logging.getLogger(__name__)

CLASSIFIER_IMAGES = 5000
"""Training images that the classifiers are trained on, at most; evenly spaced."""


class TaskFigures(NamedTuple):
    """What a model comes to at one task.

    Attributes:
      sets: figures of the restorations by set ("retain", "forget", …).
      real_images: what the originals themselves reach, by set.
    """

    sets: dict[str, SetFigures]
    real_images: dict[str, dict[str, float]]


class ModelFigures(NamedTuple):
    """What a model does to the test images.

    Attributes:
      tasks: by name of the task, in the order of `config.evaluate.tasks`.
      shown: restorations `[image, height, width, channel]` at the first task of the images of
        `Evaluation.shown`, by set; empty but in the primary process.
    """

    tasks: dict[str, TaskFigures]
    shown: dict[str, np.ndarray]

    @property
    def first(self) -> TaskFigures:
        """The first task."""
        return next(iter(self.tasks.values()))

    @property
    def figures(self) -> dict[str, dict[str, float]]:
        """Figures of the first task by set."""
        return {of: result.figures for of, result in self.first.sets.items()}

    @property
    def intervals(self) -> dict[str, dict[str, tuple[float, float]]]:
        """Ends of 95 % intervals of the first task's figures, by set."""
        return {of: result.intervals for of, result in self.first.sets.items()}


class Evaluation:
    """The image sets of a configuration, its tasks, and the networks that measure restorations.

    Args:
      config: the experiment.
      folder: where observations are kept; on storage that all hosts share.

    Attributes:
      train: the source of all training images.
      tests: test images by set.
      restorers: fill the masks of each task, by name of the task.
      class_names: names of the class ids.
    """

    def __init__(self, config: Config, folder: pathlib.Path):
        model, data, evaluate = config.model, config.data, config.evaluate
        self.train = open_source(data, "train", model.image_size)
        test = open_source(data, "test", model.image_size)
        self.class_names = test.class_names
        sets = evaluation_sets(data, test)._asdict() | {"general": general_set(data, test)}
        self.tests = {
            of: ImageSet.of(config, source, f"{of} test") for of, source in sets.items() if source is not None
        }
        self.restorers = {
            task.name: Restorer(model, task, batch_size=evaluate.batch_size, seed=config.seed)
            for task in parse_tasks(evaluate.tasks)
        }
        self._config, self._folder = config, folder

    @property
    def restorer(self) -> Restorer:
        """That of the first task."""
        return next(iter(self.restorers.values()))

    @property
    def networks(self) -> dict[str, FeatureNetwork]:
        """The feature networks by name."""
        return self._opened[0]

    @property
    def missing(self) -> dict[str, str]:
        """Why figures are not available, by name: those of networks that are not there."""
        return self._opened[1]

    @functools.cached_property
    def _opened(self) -> tuple[dict[str, FeatureNetwork], dict[str, str]]:
        """The networks, and what is missing; training the classifier takes some seconds."""
        networks, missing = open_all(self._config.evaluate)
        if self._classifier_images is not None:
            return {**networks, "classifier": DigitClassifier(*self._classifier_images)}, missing
        reason = (
            "config.evaluate.features is 'none'"
            if self._config.evaluate.features == "none"
            else f"the classifier needs {SPLITS} test images of each set"
        )
        return networks, missing | dict.fromkeys([*figures_of("classifier"), "accuracy"], reason)

    @functools.cached_property
    def _classifier_images(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Real images, uint8, and their labels, that classifiers are trained on, if there are to be any."""
        if self._config.evaluate.features == "none" or min(map(len, self.tests.values())) < SPLITS:
            return None
        labels = np.concatenate([images.labels for images in self.tests.values()])
        members = np.flatnonzero(np.isin(self.train.labels, labels))
        if len(members) > CLASSIFIER_IMAGES:
            members = members[np.linspace(0, len(members) - 1, CLASSIFIER_IMAGES).astype(int)]
        train = ImageSet.of(self._config, self.train, "training").read(members)
        return to_uint8(train.images, self._config.model.value_range), train.labels

    @functools.cached_property
    def _mask_classifiers(self) -> dict[str, MaskClassifier | None]:
        """By task; none where every image has a mask of its own."""
        return {
            task: None
            if self._classifier_images is None or restorer.mask is None
            else MaskClassifier(*self._classifier_images, restorer.mask)
            for task, restorer in self.restorers.items()
        }

    def correct(self, restored: np.ndarray, labels: np.ndarray) -> np.ndarray | None:
        """Whether the class of each image is read rightly from the mask of the first task, bool `[image]`.

        Args:
          restored: `[image, height, width, channel]` in the model's range.
          labels: class ids `[image]`.

        Returns:
          None, if there is no classifier.
        """
        classifier = self._mask_classifiers[self.restorer.task.name]
        pixels = to_uint8(restored, self.restorer.value_range)
        return None if classifier is None else classifier.correct(pixels, labels)

    @functools.cached_property
    def shown(self) -> dict[str, Images]:
        """The test images that pictures show, by set."""
        per_class = self._config.evaluate.picture_per_class
        return {of: images.first_of_each_class(per_class) for of, images in self.tests.items()}

    def seen(self, of: str) -> np.ndarray:
        """What a model is shown, at the first task, of the images of `shown` of a set."""
        shown = self.shown[of]
        return self.restorer.seen(shown.images, of, shown.indices)

    @functools.cached_property
    def _shown_places(self) -> dict[str, list[int]]:
        return from_primary(lambda: {of: shown.indices.tolist() for of, shown in self.shown.items()})

    def evaluate(self, params: Params, name: str) -> ModelFigures:
        """Restore all test images at all tasks and measure the result.

        All processes restore; one measures and tells the others.

        Args:
          params: all parts.
          name: of the model: of its folder of observations, and on the console.
        """
        model, fingerprint = Model(self.restorer.place(params), _slug(name)), _fingerprint(params)
        with barrier():
            _ = self._observer
        _ = self._shown_places
        for of in self.tests:
            on_primary(lambda of=of: self._claim(model, fingerprint, of))
            with barrier():
                self._observe_set(model, of, f"restore {of} ({name})")
        measured = from_primary(lambda: self._measure(model))
        tasks = {
            task: TaskFigures({of: SetFigures(*figures) for of, figures in sets.items()}, real)
            for task, (sets, real) in measured.items()
        }
        return ModelFigures(tasks, self._shown(model) if is_primary() else {})

    def _claim(self, model: Model, fingerprint: str, of: str) -> None:
        """Make room for the observations of a model; delete those of other settings."""
        batch_size = self._config.evaluate.batch_size
        settings = self._config.describe("family", "model", "seed")
        for task in self.restorers:
            key = {"params": fingerprint, "batch_size": batch_size, **settings}
            restored_of(self._folder, model.name, task, of).claim(key)
        for task in ("whole", *self.restorers):
            originals_of(self._folder, of, task).claim({"batch_size": batch_size})

    @functools.cached_property
    def _observer(self) -> Observer:
        return Observer(
            self._folder, self.networks, self._mask_classifiers, self.class_names,
            write_images=self._config.evaluate.write_images,
        )  # fmt: skip

    def _names(self, of: str) -> list[str]:
        """Names of all blocks of a set."""
        return [f"{number:05d}" for number in range(-(-len(self.tests[of]) // self._batch_size))]

    @property
    def _batch_size(self) -> int:
        return self._config.evaluate.batch_size

    def _observe_set(self, model: Model, of: str, title: str) -> None:
        """Restore and observe this process's blocks of a set, unless it was done before."""
        share = slice(jax.process_index(), None, jax.process_count())
        images = self.tests[of]
        total = len(images) * len(self.restorers)
        with Progress(title, -(-total // jax.process_count()), unit="image") as progress:
            for block in images.blocks(self._batch_size, share):
                for restorer in self.restorers.values():
                    self._observer.observe(model, restorer, of, block, self._shown_places[of])
                    progress.update(block.size)

    def save_tsne(self, path: pathlib.Path, models: Sequence[str], task: str) -> None:
        """Write t-SNE of CLIP's embeddings at a task: of the originals, and of each model's restorations.

        Nothing is written where CLIP is not among the networks, or too few images are there. For the primary
        process, after `evaluate` of all these models.
        """
        groups = {}
        for of in self.tests:
            names = self._names(of)
            groups[f"{of}, images"] = self._read_original(task, of, "clip/features")
            for name in models:
                store = restored_of(self._folder, _slug(name), task, of)
                groups[f"{of}, {name}"] = store.join(names, "clip/features")
        found = {name: rows for name, rows in groups.items() if rows is not None}
        if sum(map(len, found.values())) >= tsne.LEAST:
            tsne.save(path, tsne.project(found))

    def _measure(self, model: Model) -> dict[str, Any]:
        """By task: `SetFigures` by set, and what the originals reach."""
        return {
            task: (
                {of: self._measure_set(model, task, of) for of in self.tests},
                {of: measure_real(functools.partial(self._read_original, task, of)) for of in self.tests},
            )
            for task in self.restorers
        }

    def _measure_set(self, model: Model, task: str, of: str) -> SetFigures:
        store, names = restored_of(self._folder, model.name, task, of), self._names(of)
        for name in names:
            self.tests[of].skip(json.loads(str(store.load(name, SKIPPED)[SKIPPED])))
        return measure(
            lambda member: store.join(names, member) if self._is_wanted(task, member) else None,
            functools.partial(self._read_original, task, of),
        )

    def _read_original(self, task: str, of: str, member: str) -> np.ndarray | None:
        store = originals_of(self._folder, of, task if member == "correct" else "whole")
        return store.join(self._names(of), member) if self._is_wanted(task, member) else None

    def _is_wanted(self, task: str, member: str) -> bool:
        """Whether an array of observations is not a remnant of a network that is left out now."""
        if member == "correct":
            return self._mask_classifiers[task] is not None
        network, _, output = member.partition("/")
        return not output or network in self.networks

    def _shown(self, model: Model) -> dict[str, np.ndarray]:
        """Restorations of the images of `shown` at the first task."""
        task, result = next(iter(self.restorers)), {}
        for of, shown in self.shown.items():
            store, kept = restored_of(self._folder, model.name, task, of), {}
            for number in sorted(set(shown.indices // self._batch_size)):
                arrays = store.load(f"{number:05d}", SHOWN_PLACES, SHOWN_IMAGES)
                kept |= dict(zip(arrays[SHOWN_PLACES], arrays[SHOWN_IMAGES], strict=True))
            result[of] = np.stack([kept[place] for place in shown.indices])
        return result


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "_", name)


def _fingerprint(params: Mapping[str, Any]) -> str:
    """SHA-256 of all parameters."""
    digest = hashlib.sha256()
    for path, value in jax.tree_util.tree_leaves_with_path(params):
        array = np.ascontiguousarray(jax.device_get(value))
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.view(np.uint8) if array.ndim else array.tobytes())
    return digest.hexdigest()
