"""Attacks that train a model further, with the family's own loss at a constant rate."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from l2l_jax.audit.attacks.base import Attack, Count, Rate, Work, register
from l2l_jax.data.arrays import NoiseImages
from l2l_jax.data.config import SourceConfig
from l2l_jax.data.records import Mixture, Source, Subset
from l2l_jax.data.sources import open_source
from l2l_jax.data.splits import general_set
from l2l_jax.errors import UserError
from l2l_jax.methods.base import Objective, pretraining_objective
from l2l_jax.models.base import Model, fresh_parts
from l2l_jax.train.optim import TrainingConfig


class Training(NamedTuple):
    """A training of an attacker: `objective` on the set "train", by AdamW without weight decay."""

    objective: Objective
    images: Source
    steps: int
    batch_size: int
    learning_rate: float

    @property
    def config(self) -> TrainingConfig:
        """The training's length, rate and optimizer."""
        return TrainingConfig(
            self.steps, self.batch_size, self.learning_rate, schedule="constant", weight_decay=0.0,
            checkpoint_every=500, log_every=50,
        )  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """Return what its result depends on besides the images, JSON-able."""
        numbers = {name: getattr(self, name) for name in ("steps", "batch_size", "learning_rate")}
        return {"trained": list(self.objective.trained), **numbers}


@dataclasses.dataclass(frozen=True)
class TrainingAttack(Attack):
    """An attack that trains the model and measures it after `steps`, half of them, a quarter, ….

    Attributes:
      steps: Training steps.
      batch_size: Images of a step.
      learning_rate: Constant rate of AdamW.
    """

    cost = "`steps` training steps"
    is_curve = is_seeded = True
    measurements: ClassVar[int] = 5  # at most

    steps: Count = 400
    batch_size: Count = 64
    learning_rate: Rate = 1e-3

    def training_images(self, variant: str, bench: Any, seed: int) -> Source:
        """Return the training images."""
        raise NotImplementedError

    def objective(self, model: Model) -> Objective:
        """Return what is trained: by default all parts of the last stage of pretraining."""
        return pretraining_objective(model.pretraining_stages()[-1], tuple(model.shapes()))

    def work(self, bench):
        variants, times = len(self.variants(bench)), len(halvings(self.steps, self.measurements))
        trained = variants * self.steps * self.batch_size
        return Work(variants * times * bench.count("validation", "forget"), trained)

    def training(self, model: Model, images: Source) -> Training:
        """Return the training on some images."""
        return Training(self.objective(model), images, self.steps, self.batch_size, self.learning_rate)

    def run(self, variant, bench, target, seed):
        training = self.training(bench.model, self.training_images(variant, bench, seed))
        return bench.train(target, variant, training, halvings(self.steps, self.measurements), seed)


def few_of_each_class(source: Source, count: int, seed: int, option: str) -> Subset:
    """Choose `count` images at random, as evenly over the classes as possible.

    Raises:
      UserError: There are fewer images; `option` of `config.audit` asks for too many.
    """
    labels = np.asarray(source.labels)
    if count > len(labels):
        raise UserError(
            f"config.audit.{option} asks for {count} forget images, but there are {len(labels)}: "
            "ask for fewer."
        )
    order = np.random.default_rng(seed).permutation(len(labels))
    rank = np.empty(len(labels), int)  # of each image among those of its class
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    return Subset(source, np.sort(order[np.argsort(rank[order], kind="stable")][:count]))


def halvings(steps: int, count: int) -> tuple[int, ...]:
    """Return `steps` and its halves, at most `count` numbers above 0, ascending."""
    return tuple(sorted({steps >> power for power in range(count)} - {0}))


@register("retain_tuning")
@dataclasses.dataclass(frozen=True)
class RetainTuning(TrainingAttack):
    """Train the whole model on retain images alone, without one forget image."""

    title = "retain images only, {steps} steps"
    source = 'arXiv 2505.22310, "Unlearning\'s Blind Spots"'

    learning_rate: Rate = 2e-3

    def training_images(self, variant, bench, seed):
        return bench.training.retain


@dataclasses.dataclass(frozen=True)
class _Foreign(SourceConfig):
    where = "config.audit.foreign_data"


@register("foreign_data")
@dataclasses.dataclass(frozen=True)
class ForeignData(TrainingAttack):
    """Train the whole model on images that are neither retained nor forgotten.

    Attributes:
      images: "noise": generated images with the spectra of photographs; "general": the training images of
        `config.data.general`; otherwise a source as in `config.data.source`.
      path: Its folder or file.
      count: Number of generated images.
    """

    title = "foreign images ({images}), {steps} steps"
    source = "arXiv 2512.03564"

    steps: Count = 200
    images: str = "noise"
    path: str = ""
    count: Count = 2000

    def check(self, bench):
        self.training_images("", bench, 0)

    def training_images(self, variant, bench, seed):
        size, data = bench.model.image_size, bench.config.data
        if self.images == "noise":
            return NoiseImages(self.count, size, bench.seed(seed))
        if self.images == "general":
            found = general_set(data, open_source(data, "train", size))
            if found is None:
                needs = "config.audit.foreign_data.images is 'general', but config.data.general is empty."
                raise UserError(needs)
            return found
        return open_source(_Foreign(self.images, self.path), "train", size)


@register("weight_noise")
@dataclasses.dataclass(frozen=True)
class WeightNoise(RetainTuning):
    """Add Gaussian noise to every array of encoder and decoder; then train on retain images alone.

    Attributes:
      levels: Standard deviations of the noise, in standard deviations of each array; the greatest is that of
        the model that is trained.
    """

    source = "arXiv 2605.11592"
    cost = "a reconstruction of the forget images for each level, and `steps` training steps"
    measurements = 3

    steps: Count = 200
    levels: tuple[Rate, ...] = (0.01, 0.05, 0.1)

    def variants(self, bench):
        return {
            "weight_noise": f"noise on the weights, {', '.join(f'{x:g}' for x in self.levels)}",
            "weight_noise_tuning": f"noise {max(self.levels):g}, then retain images, {self.steps} steps",
        }

    def work(self, bench):
        images = bench.count("validation", "forget")
        return Work(images * (len(self.levels) + 3), self.steps * self.batch_size)

    def run(self, variant, bench, target, seed):
        number = bench.seed(seed)
        if variant == "weight_noise_tuning":
            noisy = target._replace(params=add_noise(target.params, max(self.levels), number))
            return super().run(variant, bench, noisy, seed)
        points = {}
        for level in self.levels:
            noisy, title = add_noise(target.params, level, number), f"{target.name}, {variant} {level:g}"
            points[f"{level:g}"] = bench.measure(noisy, title)
        return points


def add_noise(params, level, seed):
    """Return parameters with noise of `level` standard deviations of each array of encoder and decoder."""
    rng = np.random.default_rng(seed)

    def add(x):
        return (x + level * x.std() * rng.standard_normal(x.shape)).astype(x.dtype)

    return {**params, **{part: jax.tree.map(add, params[part]) for part in ("encoder", "decoder")}}


@register("fresh_decoder")
@dataclasses.dataclass(frozen=True)
class FreshDecoder(TrainingAttack):
    """Train a new decoder over the frozen encoder, once on retain images and once on all images."""

    source = 'the "secondary autoencoder" that reviewers of arXiv 2402.00351 asked for'
    cost = "twice `steps` training steps, without the encoder's backward pass"
    measurements = 1

    steps: Count = 600
    learning_rate: Rate = 2e-3

    def variants(self, bench):
        return {
            f"fresh_decoder_{images}": f"fresh decoder, {images} images, {self.steps} steps"
            for images in ("retain", "all")
        }

    def objective(self, model):
        fresh = fresh_parts(model, ["decoder"])
        stage = model.pretraining_stages()[-1]._replace(trained=("decoder",))
        objective = pretraining_objective(stage, tuple(model.shapes()))
        return dataclasses.replace(objective, start=lambda params, rng: {**params, **fresh(rng)})

    def training_images(self, variant, bench, seed):
        sets = bench.training._asdict()
        if variant == "fresh_decoder_retain":
            return sets["retain"]
        return Mixture(sets, [len(source) for source in sets.values()])
