"""Images, measurements and trainings that attacks share, compiled once for all models."""

import hashlib
import json
import pathlib
import shutil
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import numpy as np

from l2l_jax.audit.config import AuditConfig
from l2l_jax.audit.points import Measured, Points, from_arrays, to_arrays
from l2l_jax.audit.trainings import Training
from l2l_jax.data.config import DataConfig
from l2l_jax.data.loader import LoaderOptions, TrainingBatches, training_batches
from l2l_jax.data.records import Source, evenly_spaced
from l2l_jax.data.sources import open_source
from l2l_jax.data.splits import Split, validation_sets
from l2l_jax.data.transforms import Transform
from l2l_jax.errors import UserError
from l2l_jax.evals import metrics
from l2l_jax.evals.config import EvaluationSetup
from l2l_jax.evals.encoder_features import EncoderFeatures
from l2l_jax.evals.evaluator import Evaluation
from l2l_jax.evals.image_set import ImageSet
from l2l_jax.models.base import Model, Params
from l2l_jax.train import sharding
from l2l_jax.train.hooks import Observe
from l2l_jax.train.loop import Trainer, TrainRun
from l2l_jax.train.parallel import ParallelKind
from l2l_jax.utils.io import ResultCache
from l2l_jax.utils.multihost import barrier, on_primary
from l2l_jax.utils.progress import Progress

T = TypeVar("T")

VALIDATION_IMAGES = 500
"""Images on which the best step of each curve is chosen, at most; evenly spaced."""


class AuditSetup(EvaluationSetup, Protocol):
    """What an audit depends on; an experiment's `Config` is one."""

    @property
    def audit(self) -> AuditConfig:
        """The attacks."""
        ...

    @property
    def mesh(self) -> sharding.MeshConfig:
        """How the devices are arranged."""
        ...

    @property
    def parallel(self) -> ParallelKind:
        """How a step runs on them."""
        ...

    def describe(self, *sections: str) -> dict[str, Any]:
        """Return JSON-able values of the named sections."""
        ...


class Target(NamedTuple):
    """A model under attack.

    Attributes:
      name: Name of the model.
      params: Its parameters, which no attack changes.
      cache: Results of the attacks on it.
      show: Whether to keep reconstructions of the images that pictures show.
    """

    name: str
    params: Params
    cache: ResultCache
    show: bool


class Bench:
    """Images, measurements and trainings for the attacks of one experiment.

    Args:
      config: The experiment.
      evaluation: Its test images, mask and classifier.
      training: The images that unlearning was given, which an attacker may have.

    Raises:
      UserError: Images have masks of their own.

    Attributes:
      model: The architecture of the models.
      mask: Bool `[height, width]`, True where pixels are missing.
      sets: "retain" and "forget" test images; "validation" and "retain validation": images to choose on.
    """

    def __init__(self, config: AuditSetup, evaluation: Evaluation, training: Split):
        self.config, self.model, self.training = config, config.model, training
        self._evaluation = evaluation
        if evaluation.inpainter.mask is None:
            raise UserError(
                f"The first of config.evaluate.tasks is {evaluation.inpainter.task.name}, which masks other "
                "patches of each image; an audit needs one mask for all, such as centre_8."
            )
        self.mask = evaluation.inpainter.mask
        self.sets: dict[str, ImageSet] = {name: evaluation.tests[name] for name in ("retain", "forget")}
        for name, source in _to_choose_on(config.data, config.model, training).items():
            self.sets[name] = self.image_set(evenly_spaced(source, VALIDATION_IMAGES))
        self._shared: dict[Any, Any] = {}
        self._lock = threading.RLock()  # attacks may run side by side

    def shared(self, key: Any, make: Callable[[], T]) -> T:
        """Return what `make` returned at the first call with this key."""
        with self._lock:
            if key not in self._shared:
                self._shared[key] = make()
            return self._shared[key]

    def seed(self, repetition: int, purpose: int = 2) -> int:
        """Return a seed for what an attack draws: different by purpose, the same for every model."""
        sequence = np.random.SeedSequence((self.config.seed, repetition, purpose))
        return int(sequence.generate_state(1)[0] >> 1)

    def image_set(self, source: Source) -> ImageSet:
        """Return images of a source, prepared as test images are."""
        return ImageSet.of(self.config, source, "audit")

    def measure(
        self, params: Params, title: str, sets: tuple[str, ...] = ("validation", "forget")
    ) -> Measured:
        """Measure a model on image sets; `title` is shown meanwhile."""
        return {name: self.measure_images(params, self.sets[name], name, title) for name in sets}

    def measure_images(
        self, params: Params, images: ImageSet, name: str, title: str
    ) -> Mapping[str, np.ndarray]:
        """Measure a model on the images of a set, whose name decides what is drawn: see `points.Measured`."""
        inpainter, blocks = self._evaluation.inpainter, []
        placed = inpainter.place(params)
        with Progress(f"{title}, {name}", len(images), unit="image") as progress:
            for originals, inpainted in inpainter.over(placed, images, name):
                blocks.append({
                    "mse": metrics.masked_mse(originals.images, inpainted, self.mask),
                    "label": originals.labels, **self.right(inpainted, originals.labels),
                })  # fmt: skip
                progress.update(len(inpainted))
        return {key: np.concatenate([block[key] for block in blocks]) for key in blocks[0]}

    def right(self, inpainted: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        """Return {"right": whether the class is found in the masked region}; empty without a classifier."""
        right = self._evaluation.correct(inpainted, labels)
        return {} if right is None else {"right": right}

    def features(self, params: Params, images: ImageSet) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return encoder features `[image, feature]` by layer, and class ids."""
        config = self.config
        features = self.shared(
            "features", lambda: EncoderFeatures(self.model, config.evaluate.batch_size, config.seed)
        )
        return features(params, images)

    def train(
        self, target: Target, variant: str, training: Training, measured_at: tuple[int, ...], seed: int
    ) -> Points:
        """Train a model further and measure it on the way; an interrupted training resumes."""
        points: dict[str, Measured] = {}
        stamp = {"training": training.describe(), "repetition": seed, "at": measured_at}
        place = f"{variant}/seed_{seed}"
        folder = target.cache.folder / f"{variant}_training_{seed}_{_short_hash(stamp)}"
        title = f"{target.name}, {variant}"

        def observe(step: int, params: Params) -> None:
            points[str(step)] = self.measure(params, f"{title} {step}")
            arrays = to_arrays({str(step): points[str(step)]})
            on_primary(lambda: target.cache.put(f"{place}_step_{step}", arrays, stamp=stamp))
            if target.show and seed == 0:
                pictures = self.pictures(params)
                on_primary(lambda: target.cache.put(f"{variant}/pictures_{step}", pictures))

        with barrier():  # complains in all processes of what is wrong
            trainer = self.shared(
                (training.task.trained, training.config, seed), lambda: self._trainer(variant, training, seed)
            )
        run = TrainRun(target.params, self._batches(training, seed, folder), folder, name=title)
        trainer.train(run, [Observe(measured_at, observe)])
        for step in measured_at:
            if str(step) not in points:  # before the checkpoint from which the training resumed
                points |= from_arrays(target.cache.get(f"{place}_step_{step}", stamp=stamp, wait=True))
        on_primary(
            lambda: shutil.rmtree(folder, ignore_errors=True)
        )  # checkpoints are larger than all results
        return {str(step): points[str(step)] for step in measured_at}

    def pictures(self, params: Params) -> dict[str, np.ndarray]:
        """Return reconstructions of the images that pictures show, by set."""
        inpainter = self._evaluation.inpainter
        placed = inpainter.place(params)
        return {
            name: inpainter(placed, few, name)
            for name, few in self._evaluation.shown.items()
            if name in self.sets
        }

    def _trainer(self, variant: str, training: Training, seed: int) -> Trainer:
        return Trainer(
            variant, training.task, training.config, seed=self.seed(seed, purpose=1),
            mesh=sharding.make_mesh(config=self.config.mesh), parallel=self.config.parallel,
        )  # fmt: skip

    def _batches(self, training: Training, seed: int, folder: pathlib.Path) -> TrainingBatches:
        data = self.config.data
        options = LoaderOptions(
            folder, data.max_bad_fraction, data.workers, jax.process_index(), jax.process_count()
        )
        return training_batches(
            {"train": training.images},
            training.batch_size,
            value_range=self.model.value_range,
            seed=self.seed(seed),
            transforms={"train": Transform(data, self.model.image_size, training=True)},
            options=options,
        )


def _to_choose_on(data: DataConfig, model: Model, training: Split) -> dict[str, Source]:
    """Return validation images; without any, the training images, which are as independent of test images."""
    found = training
    if data.validation_fraction:
        found = validation_sets(data, open_source(data, "validation", model.image_size))
    return {"validation": found.forget, "retain validation": found.retain}


def _short_hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
