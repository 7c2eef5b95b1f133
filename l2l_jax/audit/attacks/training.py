"""Attacks that fine-tune a model with the family's own loss at a constant learning rate."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import numpy as np

from l2l_jax.audit.attacks.base import Attack, Count, Rate, Work
from l2l_jax.data.records import Source, Subset
from l2l_jax.errors import UserError
from l2l_jax.methods.base import Objective, pretraining_objective
from l2l_jax.models.base import Model
from l2l_jax.train.optim import TrainingConfig


class Training(NamedTuple):
    """A training run of an attacker: `objective` on the set "train" by AdamW without weight decay."""

    objective: Objective
    images: Source
    steps: int
    batch_size: int
    learning_rate: float

    @property
    def config(self) -> TrainingConfig:
        """Return the number of steps, the learning rate and the optimizer."""
        return TrainingConfig(
            self.steps,
            self.batch_size,
            self.learning_rate,
            schedule="constant",
            weight_decay=0.0,
            checkpoint_every=500,
            log_every=50,
        )

    def describe(self) -> dict[str, Any]:
        """Return everything but the images that the result depends on, as JSON values."""
        numbers = {name: getattr(self, name) for name in ("steps", "batch_size", "learning_rate")}
        return {"trained": list(self.objective.trained), **numbers}


@dataclasses.dataclass(frozen=True)
class TrainingAttack(Attack):
    """An attack that fine-tunes the model and measures it after `steps`, half of them, a quarter, ….

    Attributes:
      steps: Number of training steps.
      batch_size: Number of images per step.
      learning_rate: Constant learning rate of AdamW.
    """

    cost = "`steps` training steps"
    is_curve = is_seeded = True
    measurements: ClassVar[int] = 5
    """Maximum number of measurements."""

    steps: Count = 400
    batch_size: Count = 64
    learning_rate: Rate = 1e-3

    def training_images(self, variant: str, bench: Any, seed: int) -> Source:
        """Return the training images."""
        raise NotImplementedError

    def objective(self, model: Model) -> Objective:
        """Return the training objective: by default that of the last pretraining phase, for all parts."""
        return pretraining_objective(model.pretraining_stages()[-1], tuple(model.shapes()))

    def work(self, bench):
        variants, times = len(self.variants(bench)), len(halvings(self.steps, self.measurements))
        trained = variants * self.steps * self.batch_size
        return Work(variants * times * bench.count("validation", "forget"), trained)

    def training(self, model: Model, images: Source) -> Training:
        """Return the training run on the given images."""
        return Training(self.objective(model), images, self.steps, self.batch_size, self.learning_rate)

    def run(self, variant, bench, target, seed):
        training = self.training(bench.model, self.training_images(variant, bench, seed))
        return bench.train(target, variant, training, halvings(self.steps, self.measurements), seed)


def few_of_each_class(source: Source, count: int, seed: int, option: str) -> Subset:
    """Choose `count` images at random, as evenly over the classes as possible.

    Raises:
      UserError: There are fewer images than `option` of `config.audit` asks for.
    """
    labels = np.asarray(source.labels)
    if count > len(labels):
        raise UserError(
            f"config.audit.{option} asks for {count} forget images, but there are {len(labels)}: "
            "ask for fewer."
        )
    order = np.random.default_rng(seed).permutation(len(labels))
    rank = np.empty(len(labels), int)  # rank of each image in its class
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    chosen = order[np.argsort(rank[order], kind="stable")][:count]
    return Subset(source, np.sort(chosen))


def halvings(steps: int, count: int) -> tuple[int, ...]:
    """Return `steps` halved 0 to `count - 1` times, without zeros, in ascending order."""
    return tuple(sorted({steps >> power for power in range(count)} - {0}))
