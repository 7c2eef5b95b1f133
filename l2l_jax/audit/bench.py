"""Image sets, metrics and training runs shared by the attacks, compiled once for all models."""

import dataclasses
import functools
import hashlib
import json
import shutil
import threading
import timeit
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from l2l_jax.audit.attacks.base import Measured, Points, Work
from l2l_jax.audit.attacks.training import Training
from l2l_jax.audit.canaries import CANARIES, Canaries
from l2l_jax.audit.config import AuditConfig
from l2l_jax.audit.knowledge import Moments, calibrated_errors, credit, moments
from l2l_jax.data.canaries import Marked
from l2l_jax.data.loader import LoaderOptions, TrainingBatches
from l2l_jax.data.records import Source, evenly_spaced
from l2l_jax.data.sources import open_source
from l2l_jax.data.splits import Split, validation_sets
from l2l_jax.data.transforms import Transform
from l2l_jax.errors import UserError
from l2l_jax.evals import metrics
from l2l_jax.evals.config import EvaluationSetup
from l2l_jax.evals.encoder_features import EncoderFeatures
from l2l_jax.evals.evaluator import Evaluation
from l2l_jax.evals.image_set import Images, ImageSet
from l2l_jax.evals.runner import BatchedRunner, image_rows, per_image
from l2l_jax.models.base import Params
from l2l_jax.train import sharding
from l2l_jax.train.hooks import Hook, Observe
from l2l_jax.train.loop import Trainer, TrainRun
from l2l_jax.train.parallel import ParallelKind
from l2l_jax.utils.io import ResultCache
from l2l_jax.utils.multihost import is_primary
from l2l_jax.utils.progress import Progress

T = TypeVar("T")
VALIDATION_IMAGES = 500  # maximum number of images for choosing the best step of a curve; evenly spaced
# `(params, images, set name)` → images and their reconstructions, in batches
Reconstructions = Callable[[Params, ImageSet, str], Iterator[tuple[Images, np.ndarray]]]


class AuditSetup(EvaluationSetup, Protocol):
    """Config sections that an audit depends on; `Config` implements this protocol."""

    @property
    def audit(self) -> AuditConfig: ...  # noqa: D102
    @property
    def mesh(self) -> sharding.MeshConfig: ...  # noqa: D102
    @property
    def parallel(self) -> ParallelKind: ...  # noqa: D102
    def describe(self, *sections: str) -> dict[str, Any]: ...  # noqa: D102


class Target(NamedTuple):
    """A model under attack. Attacks do not modify its parameters."""

    name: str
    params: Params
    cache: ResultCache  # results of the attacks on it
    show: bool  # whether to keep reconstructions for pictures


class Bench:
    """Image sets, metrics and training runs for the attacks of one experiment.

    Args:
      config: Config of the experiment.
      evaluation: Its test images, mask and classifier.
      training: Images used for unlearning, which an attacker may have.

    Raises:
      UserError: The evaluation task draws a different mask for each image.

    Attributes:
      mask: Bool `[height, width]`, True where pixels are missing.
      validation: Images on which the best steps are chosen.
      sets: Test images "retain" and "forget"; "validation" (forget) and "retain validation" images.
      canaries: Marked training images, if `config.data.canaries` is set.
    """

    def __init__(self, config: AuditSetup, evaluation: Evaluation, training: Split):
        self.config, self.model = config, config.model
        self.evaluation, self.training = evaluation, training
        if evaluation.inpainter.mask is None:
            raise UserError(
                f"The first of config.evaluate.tasks is {evaluation.inpainter.task.name}, which masks other "
                "patches in each image; an audit needs the same mask for all images, such as centre_8."
            )
        self.mask = evaluation.inpainter.mask
        self.sets: dict[str, ImageSet] = {name: evaluation.tests[name] for name in ("retain", "forget")}
        self.validation = training  # like validation images, disjoint from the test images
        if config.data.validation_fraction:
            source = open_source(config.data, "validation", config.model.image_size)
            self.validation = validation_sets(config.data, source)
        self.validation = Split(*(evenly_spaced(source, VALIDATION_IMAGES) for source in self.validation))
        for name, source in zip(("retain validation", "validation"), self.validation, strict=True):
            self.sets[name] = self.image_set(source)
        self.canaries: Canaries | None = None
        if isinstance(evaluation.train, Marked):
            self.canaries = Canaries(config, evaluation.train, self.mask)
        self._shared: dict[Any, Any] = {}
        self._lock = threading.RLock()  # attacks may run concurrently

    def count(self, *sets: str) -> int:
        """Return the total number of images in the named sets."""
        return sum(len(self.sets[name]) for name in sets)

    def shared(self, key: Any, make: Callable[[], T]) -> T:
        """Return the cached result of `make`, which is called once per key."""
        with self._lock:
            if key not in self._shared:
                self._shared[key] = make()
            return self._shared[key]

    def seed(self, repetition: int, purpose: int = 2) -> int:
        """Return a random seed for an attack; it depends on the purpose and is the same for every model."""
        sequence = np.random.SeedSequence((self.config.seed, repetition, purpose))
        return int(sequence.generate_state(1)[0] >> 1)

    def image_set(self, source: Source) -> ImageSet:
        """Return the images of a source, preprocessed like test images."""
        return ImageSet(self.config, source, "audit")

    def runner(self, key: Any, compute: Callable[[Params, jax.Array, jax.Array], Any]) -> BatchedRunner:
        """Return a runner of `(params, image, rng) -> outputs`, compiled once for each key."""
        size = self.config.evaluate.batch_size
        return self.shared(key, lambda: BatchedRunner(per_image(compute, self.config.seed), size))

    def measure(
        self,
        params: Params,
        title: str,
        sets: tuple[str, ...] = ("validation", "forget"),
        *,
        over: Reconstructions | None = None,
    ) -> Measured:
        """Measure a model, or the reconstructions of `over`, on image sets.

        `title` is displayed with the progress. Canaries are measured as well if the experiment has any.
        """
        measured = {n: self.measure_images(params, self.sets[n], n, title, over=over) for n in sets}
        if self.canaries is not None:
            measured[CANARIES] = self.canaries.measure(over or self.evaluation.inpainter.over, params)
        return measured

    def measure_images(
        self,
        params: Params,
        images: ImageSet,
        name: str,
        title: str,
        *,
        over: Reconstructions | None = None,
        mask: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """Measure a model on the images of a set and return per-image metrics; see `Measured`.

        The set's name seeds the random draws. Reconstructions of another `mask` are not classified.
        """
        blocks = []
        over, hidden = over or self.evaluation.inpainter.over, self.mask if mask is None else mask
        with Progress(f"{title}, {name}", len(images), unit="image") as progress:
            for originals, inpainted in over(params, images, name):
                errors = metrics.masked_mse(originals.images, inpainted, hidden)
                relative = moments(originals.images, inpainted, self._mean_image, hidden)
                blocks.append({"mse": errors, "label": originals.labels, **relative._asdict()})
                predicted = self.evaluation.predicted_classes(inpainted) if mask is None else None
                if predicted is not None:
                    blocks[-1]["predicted"] = predicted
                progress.update(len(inpainted))
        joined = {key: np.concatenate([block[key] for block in blocks]) for key in blocks[0]}
        relative = Moments(*(joined.pop(name) for name in Moments._fields))
        joined["error"] = calibrated_errors(joined["mse"], relative)
        if "predicted" in joined:
            predicted = joined.pop("predicted")
            joined["right"] = predicted == joined["label"]
            joined["credit"] = credit(predicted, joined["label"])
        return joined

    @property
    def _mean_image(self) -> np.ndarray:
        """Return the mean of the retain validation images, float64 `[height, width, channel]`."""

        def mean() -> np.ndarray:
            images = self.sets["retain validation"]
            return images.read(range(len(images))).images.mean(axis=0, dtype=np.float64)

        return self.shared("mean image", mean)

    def features(self, params: Params, images: ImageSet, draws: int) -> tuple[dict[str, Any], np.ndarray]:
        """Return encoder features `[image, draw, feature]` by layer, and class IDs."""
        size, seed = self.config.evaluate.batch_size, self.config.seed
        make = functools.partial(EncoderFeatures, self.model, size, seed, draws)
        return self.shared(("features", draws), make)(params, images)

    def train(
        self, target: Target, variant: str, training: Training, measured_at: tuple[int, ...], seed: int
    ) -> Points:
        """Fine-tune a model and measure it at the given steps; an interrupted run resumes."""
        points: dict[str, Measured] = {}
        stamp = {"training": training.describe(), "repetition": seed, "at": measured_at}
        entries = {str(step): f"{variant}/seed_{seed}_step_{step}" for step in measured_at}
        title = f"{target.name}, {variant}"

        def observe(step: int, params: Params) -> None:
            name = str(step)
            points[name] = self.measure(params, f"{title} {step}")
            target.cache.put_shared(entries[name], flatten_dict({name: points[name]}, sep="/"), stamp=stamp)
            if target.show and seed == 0:
                target.cache.put_shared(f"{variant}/pictures_{step}", self.pictures(params))

        if not target.cache.has_all(entries.values(), stamp=stamp):
            self.fit(target, variant, training, seed, [Observe(measured_at, observe)])
        for step in entries.keys() - points.keys():  # measured before the checkpoint the run resumed from
            points |= unflatten_dict(target.cache.get(entries[step], stamp=stamp, wait=True), sep="/")
        return {step: points[step] for step in entries}

    def fit(
        self, target: Target, variant: str, training: Training, seed: int, hooks: Sequence[Hook] = ()
    ) -> Params:
        """Fine-tune a model and return its parameters; an interrupted run resumes.

        Runs that differ only in their images and number of steps share a compiled step.
        """
        data, stamp = self.config.data, {"training": training.describe(), "repetition": seed}
        digest = hashlib.sha256(json.dumps(stamp, sort_keys=True).encode()).hexdigest()[:12]
        folder = target.cache.folder / f"{variant}_training_{seed}_{digest}"
        process = jax.process_index(), jax.process_count()
        options = LoaderOptions(folder, data.max_bad_fraction, data.workers, *process)
        batches = TrainingBatches(
            {"train": training.images},
            training.batch_size,
            value_range=self.model.value_range,
            seed=self.seed(seed),
            options=options,
            transforms={"train": Transform(data, self.model.image_size, training=True)},
        )

        def make() -> Trainer:
            mesh, kind = sharding.make_mesh(config=self.config.mesh), self.config.parallel
            train_seed = self.seed(seed, purpose=1)
            return Trainer(
                variant, training.objective, training.config, seed=train_seed, mesh=mesh, parallel=kind
            )

        step = dataclasses.replace(training.config, steps=1)  # the learning rate is constant
        trainer = self.shared((training.objective.trained, step, seed), make)
        name, steps = f"{target.name}, {variant}", training.steps
        run = TrainRun(target.params, batches, folder, name=name, hooks=hooks, steps=steps, keep_last=False)
        params = trainer.train(run)
        if is_primary():  # delete the checkpoints, which are larger than all results
            shutil.rmtree(folder, ignore_errors=True)
        return params

    def seconds(self, params: Params, work: Sequence[Work]) -> float:
        """Estimate how many seconds some work takes on this machine.

        One batch is timed. An image of a training step counts as three forward passes.
        """
        size, images = self.config.evaluate.batch_size, self.sets["forget"].read(range(1))

        def loss(params, image, rng):
            corrupted = self.model.corrupt(params, image[None], rng)
            return self.model.generative_loss(params, image[None], corrupted)

        trained, rows = self.runner("loss", loss), image_rows(images, "forget")
        placed, each = trained.place(params), []
        for call in (
            lambda: self.evaluation.inpainter(placed, images, "forget"),
            lambda: trained(placed, rows),
        ):
            call()  # compiles
            each.append(timeit.timeit(call, number=1) / size)  # a batch is padded to its size
        return sum(w.reconstructed * each[0] + w.trained * 3 * each[1] for w in work)

    def pictures(self, params: Params) -> dict[str, np.ndarray]:
        """Return reconstructions of the example images in the report, by set."""
        inpainter = self.evaluation.inpainter
        placed = inpainter.place(params)
        examples = {name: images for name, images in self.evaluation.shown.items() if name in self.sets}
        return {name: inpainter(placed, images, name) for name, images in examples.items()}
