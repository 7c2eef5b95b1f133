"""Trainings that an attacker might do, with the family's own loss at a constant rate."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from l2l_jax.data.records import Source, Subset
from l2l_jax.errors import UserError
from l2l_jax.methods.base import Objective, pretraining_objective
from l2l_jax.models.base import Model, fresh_parts
from l2l_jax.train.optim import TrainingConfig


class Training(NamedTuple):
    """A training of an attacker.

    Attributes:
      task: What is trained, on the one set "train".
      images: Training images.
      steps: Number of steps.
      batch_size: Images of a step.
      learning_rate: Constant rate of AdamW, without weight decay.
    """

    task: Objective
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
        return {
            "trained": list(self.task.trained), "steps": self.steps, "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
        }  # fmt: skip


def whole_model(model: Model) -> Objective:
    """Return the last stage of pretraining: all parts that restore images."""
    return pretraining_objective(model.pretraining_stages()[-1], tuple(model.shapes()))


def fresh_decoder(model: Model) -> Objective:
    """Return the training of a decoder that starts from fresh weights, over the frozen encoder."""
    fresh = fresh_parts(model, ["decoder"])
    stage = model.pretraining_stages()[-1]._replace(trained=("decoder",))
    task = pretraining_objective(stage, tuple(model.shapes()))
    return dataclasses.replace(task, start=lambda params, rng: {**params, **fresh(rng)})


def few_of_each_class(source: Source, count: int, seed: int, option: str) -> Subset:
    """Choose `count` images at random, as evenly over the classes as possible.

    Args:
      source: The images.
      count: How many.
      seed: Seed of the choice.
      option: The option of `config.audit` that asks for them.

    Raises:
      UserError: There are fewer images.
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
    chosen = order[np.argsort(rank[order], kind="stable")][:count]
    return Subset(source, np.sort(chosen))


def halvings(steps: int, count: int) -> tuple[int, ...]:
    """Return `steps` and its halves, at most `count` numbers above 0, ascending."""
    return tuple(sorted({steps >> power for power in range(count)} - {0}))
