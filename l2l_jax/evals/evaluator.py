"""Evaluation of models: inpaint the test images, store per-image observations and compute metrics.

Each process inpaints its share of the blocks of images and stores its observations on disk (`ResultCache`).
An interrupted evaluation resumes where it stopped. One process reads all blocks in order, which makes the
metrics independent of the number of processes.
"""

import copy
import dataclasses
import functools
import pathlib
import re
from typing import NamedTuple

import jax
import numpy as np

from l2l_jax.data.sources import open_source
from l2l_jax.data.splits import evaluation_sets, general_set, open_training
from l2l_jax.evals import observer
from l2l_jax.evals.config import EvaluationSetup
from l2l_jax.evals.features.classifier import MaskedClassifier, SmallClassifier
from l2l_jax.evals.features.networks import FeatureNetwork, open_networks
from l2l_jax.evals.image_set import Images, ImageSet
from l2l_jax.evals.inpaint import Inpainter
from l2l_jax.evals.metrics import SPLITS, SetMetrics, measure, measure_originals, metrics_of, to_uint8
from l2l_jax.evals.observer import EvaluatedModel, Observer, entry
from l2l_jax.evals.tasks import parse_tasks
from l2l_jax.models.base import Model, Params
from l2l_jax.utils.io import ResultCache, tree_hash
from l2l_jax.utils.multihost import barrier, from_primary, is_primary
from l2l_jax.utils.progress import Progress

CLASSIFIER_IMAGES = 5000  # maximum number of training images of the classifiers; evenly spaced
FORMAT = 2  # version of the stored observations


class TaskMetrics(NamedTuple):
    """Metrics on one task by set ("retain", "forget", …), for reconstructions and for originals."""

    sets: dict[str, SetMetrics]
    real_images: dict[str, dict[str, float]]


class ModelMetrics(NamedTuple):
    """Metrics of one model by task, in the order of `config.evaluate.tasks`.

    Attributes:
      tasks: Metrics by task.
      shown: Reconstructions `[image, height, width, channel]` of `Evaluation.shown` on the first task, by
        set; empty except in the primary process.
    """

    tasks: dict[str, TaskMetrics]
    shown: dict[str, np.ndarray]

    @property
    def first(self) -> TaskMetrics:
        """Return the metrics of the first task."""
        return next(iter(self.tasks.values()))

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Return the metrics of the first task by set."""
        return {set_name: result.metrics for set_name, result in self.first.sets.items()}


class Evaluation:
    """Test images, tasks and networks of an experiment; observations are stored in a folder."""

    missing: dict[str, str]  # reasons why metrics are not available, by name; set by `networks`

    def __init__(self, setup: EvaluationSetup, folder: pathlib.Path):
        data, size = setup.data, setup.model.image_size
        self._setup, self._folder = setup, folder
        self.train = open_training(data, size)
        test = open_source(data, "test", size)
        self.class_names = test.class_names
        sets = evaluation_sets(data, test)._asdict() | {"general": general_set(data, test)}
        sources = {set_name: source for set_name, source in sets.items() if source is not None}
        self.tests = {name: ImageSet(setup, source, f"{name} test") for name, source in sources.items()}
        self._batch_size = setup.evaluate.batch_size
        self._key = {"format": FORMAT, "batch_size": self._batch_size}
        self._inpaint_by(setup.model)

    def for_model(self, model: Model) -> "Evaluation":
        """Return an evaluation of another model with the same images and networks."""
        other = copy.copy(self)
        other._inpaint_by(model)
        return other

    def _inpaint_by(self, model: Model) -> None:
        """Set the inpainters of all tasks, and of the first task with each alternative of the model."""
        tasks = parse_tasks(self._setup.evaluate.tasks)
        runs = [(model, task) for task in tasks]
        for name, alternative in model.alternatives().items():
            runs.append((alternative, dataclasses.replace(tasks[0], alternative=name)))
        size, seed = self._batch_size, self._setup.seed
        self.inpainters = {task.name: Inpainter(run, task, batch_size=size, seed=seed) for run, task in runs}
        self._caches: dict[str, ResultCache] = {}

    @property
    def inpainter(self) -> Inpainter:
        """Return the inpainter of the first task."""
        return next(iter(self.inpainters.values()))

    @functools.cached_property
    def networks(self) -> dict[str, FeatureNetwork]:
        """Return the feature networks by name; all processes must access them at the same point."""
        networks, self.missing = open_networks(self._setup.evaluate)
        if self._classifier_images is not None:
            return {**networks, "classifier": SmallClassifier(*self._classifier_images)}
        reason = f"the classifier needs {SPLITS} test images of each set"
        if self._setup.evaluate.features == "none":
            reason = "config.evaluate.features is 'none'"
        self.missing |= dict.fromkeys([*metrics_of("classifier"), "accuracy"], reason)
        return networks

    @functools.cached_property
    def _classifier_images(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return real images, uint8, and labels to train classifiers on, or None without classifiers."""
        if self._setup.evaluate.features == "none" or min(map(len, self.tests.values())) < SPLITS:
            return None
        labels = np.concatenate([images.labels for images in self.tests.values()])
        members = np.flatnonzero(np.isin(self.train.labels, labels))
        if len(members) > CLASSIFIER_IMAGES:
            members = members[np.linspace(0, len(members) - 1, CLASSIFIER_IMAGES).astype(int)]
        train = ImageSet(self._setup, self.train, "training").read(members)
        return to_uint8(train.images, self._setup.model.value_range), train.labels

    @functools.cached_property
    def _masked_classifiers(self) -> dict[str, MaskedClassifier | None]:
        """Return classifiers of the masked region by task; None for tasks with a mask per image."""
        images, masks = self._classifier_images, {name: x.mask for name, x in self.inpainters.items()}
        return {
            task: None if images is None or mask is None else MaskedClassifier(*images, mask)
            for task, mask in masks.items()
        }

    @property
    def has_classifier(self) -> bool:
        """Return whether there is a classifier of the masked region of the first task."""
        return self._classifier_images is not None and self.inpainter.mask is not None

    def predicted_classes(self, images: np.ndarray) -> np.ndarray | None:
        """Return the class IDs `[image]` that a classifier predicts from the masked region of the first task.

        Images `[image, height, width, channel]` are in the model's range. Without a classifier, the result
        is None.
        """
        classifier = self._masked_classifiers[self.inpainter.task.name]
        if classifier is None:
            return None
        return classifier(to_uint8(images, self.inpainter.value_range))["classes"]

    @functools.cached_property
    def shown(self) -> dict[str, Images]:
        """Return the example images in the report, by set."""
        per_class = self._setup.evaluate.picture_per_class
        return {set_name: images.first_of_each_class(per_class) for set_name, images in self.tests.items()}

    def masked(self, set_name: str) -> np.ndarray:
        """Return the masked images of `shown` on the first task."""
        return self.inpainter.masked(self.shown[set_name], set_name)

    def evaluate(self, params: Params, name: str) -> ModelMetrics:
        """Inpaint all test images on all tasks and compute metrics; called by all processes.

        `name` identifies the model in the folder of observations and on the console.
        """
        key = {"parameters": tree_hash(params), "model": repr(self._setup.model), "seed": self._setup.seed}
        slug = re.sub(r"[^A-Za-z0-9.]+", "_", name)
        cache = self._caches[name] = ResultCache(self._folder / "restored" / slug, self._key | key)
        model = EvaluatedModel(self.inpainter.place(params), slug, cache)
        _ = self._observer
        with barrier():
            for set_name in self.tests:
                self._observe_set(model, set_name, f"inpaint {set_name} ({name})")
        tasks = {}
        for task, (sets, real) in from_primary(lambda: self._measure(model)).items():
            tasks[task] = TaskMetrics({name: SetMetrics(*metrics) for name, metrics in sets.items()}, real)
        return ModelMetrics(tasks, self._shown(model) if is_primary() else {})

    @functools.cached_property
    def _observer(self) -> Observer:
        networks = self.networks
        with barrier():
            classifiers = self._masked_classifiers
        originals = ResultCache(self._folder / "originals", self._key)
        images = self._folder / "images" if self._setup.evaluate.write_images else None
        return Observer(originals, images, networks, classifiers, self.class_names)

    def _observe_set(self, model: EvaluatedModel, set_name: str, title: str) -> None:
        """Inpaint and observe this process's blocks of a set, unless the observations are stored."""
        share = slice(jax.process_index(), None, jax.process_count())
        images, shown = self.tests[set_name], set(self.shown[set_name].indices.tolist())
        total = len(images) * len(self.inpainters)
        with Progress(title, -(-total // jax.process_count()), unit="image") as progress:
            for block in images.blocks(self._batch_size, share):
                for inpainter in self.inpainters.values():
                    self._observer.observe(model, inpainter, set_name, block, shown)
                    progress.update(block.size)

    def observed(self, member: str, set_name: str, model: str = "", task: str = "") -> np.ndarray | None:
        """Return an observation for all images of a set, in order, or None if it is not stored.

        Args:
          member: Name of an array such as "mse" or "classifier/features", see `evals.metrics.Read`.
          set_name: Name of the set.
          model: Name of an evaluated model; "" for the originals.
          task: Name of a task; "" for the first task.
        """
        cache = self._caches[model] if model else self._observer.originals
        return self._read(cache, task or self.inpainter.task.name, set_name, member)

    def _measure(self, model: EvaluatedModel) -> dict[str, TaskMetrics]:
        tasks = {task: TaskMetrics({}, {}) for task in self.inpainters}
        for task in tasks:
            for set_name, images in self.tests.items():
                read = functools.partial(self._read, model.cache, task, set_name)
                read_original = functools.partial(self._read, self._observer.originals, task, set_name)
                names, reasons = read(observer.SKIPPED_NAMES), read(observer.SKIPPED_REASONS)
                if names is not None and reasons is not None:
                    images.skip(dict(zip(names.tolist(), reasons.tolist(), strict=True)))
                tasks[task].sets[set_name] = measure(read, read_original, self.class_names)
                tasks[task].real_images[set_name] = measure_originals(read_original, read("labels"))
        return tasks

    def _read(self, cache: ResultCache, task: str, set_name: str, member: str) -> np.ndarray | None:
        """Read an array of all blocks of a set, or return None if it is not stored."""
        network, _, output = member.partition("/")
        if network == observer.MASKED and self._masked_classifiers[task] is None:
            return None
        is_original = cache is self._observer.originals
        kind = "whole" if is_original and network != observer.MASKED else task
        by_network = network in (*self.networks, observer.MASKED)
        if is_original and not by_network:
            return None
        numbers = range(-(-len(self.tests[set_name]) // self._batch_size))
        names = [entry(f"{kind}/{set_name}", number, network if by_network else "") for number in numbers]
        return cache.join(names, output if by_network else member)

    def _shown(self, model: EvaluatedModel) -> dict[str, np.ndarray]:
        """Return reconstructions of the images of `shown` on the first task."""
        task, result = self.inpainter.task.name, {}
        for set_name, examples in self.shown.items():
            stored: dict[int, np.ndarray] = {}
            for number in sorted(set(examples.indices // self._batch_size)):
                arrays = model.cache.get(entry(f"{task}/{set_name}", number), wait=True)
                stored |= dict(zip(arrays[observer.SHOWN_PLACES], arrays[observer.SHOWN_IMAGES], strict=True))
            result[set_name] = np.stack([stored[index] for index in examples.indices])
        return result
