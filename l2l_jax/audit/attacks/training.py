"""Attacks that train the model further: what an attacker with images, and a little time, would do.

All use the family's own training loss, at a constant rate: a curve over steps is then one training, looked at
on the way. Costs are in training steps of the family, three models and one seed each.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from l2l_jax.audit.config import AuditConfig
from l2l_jax.data.records import Mixture, Source, Subset
from l2l_jax.data.splits import Split
from l2l_jax.errors import UserError
from l2l_jax.methods.base import Objective, pretraining_objective
from l2l_jax.models.base import Model, Params, fresh_parts
from l2l_jax.train.optim import TrainingConfig


class TrainingAttack(NamedTuple):
    """A training that an attacker might do.

    Attributes:
      name: of the attack and its folder.
      task: what is trained, on the one set "train".
      training: how long and how fast.
      images: the images that it is trained on, a function of the audit's seed.
      looked_at: steps after which the model is measured, ascending; the last is the attack's result.
    """

    name: str
    task: Objective
    training: TrainingConfig
    images: "Images"
    looked_at: tuple[int, ...]


class Images(NamedTuple):
    """Which training images an attacker has.

    Attributes:
      sets: of them: ("retain",), or both.
      shots: how many forget images in place of a whole set; 0: none are chosen.
    """

    sets: tuple[str, ...]
    shots: int = 0

    def source(self, training: Split, seed: int) -> Source:
        """These images of the training images.

        Raises:
          UserError: there are fewer forget images than `shots`.
        """
        if self.shots:
            return few_of_each_class(training.forget, self.shots, seed)
        chosen = {of: getattr(training, of) for of in self.sets}
        if len(chosen) == 1:
            return chosen[self.sets[0]]
        return Mixture(chosen, [len(source) for source in chosen.values()])


def few_of_each_class(source: Source, count: int, seed: int) -> Subset:
    """A random choice of `count` images, as evenly over the classes as can be.

    Raises:
      UserError: there are fewer.
    """
    labels = np.asarray(source.labels)
    if count > len(labels):
        raise UserError(
            f"config.audit.shots asks for {count} forget images, but there are {len(labels)}: ask for fewer."
        )
    order = np.random.default_rng(seed).permutation(len(labels))
    rank = np.empty(len(labels), int)  # of each image among those of its class
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    chosen = order[np.argsort(rank[order], kind="stable")][:count]
    return Subset(source, np.sort(chosen))


def retain_tuning(model: Model, config: AuditConfig) -> TrainingAttack:
    """Train encoder and decoder on retain images alone: does the forgotten come back unasked?

    Not one forget image is used. For classifiers see "Unlearning's blind spots" and arXiv 2505.22310, which
    report it for unlearned models of every kind. Cost: `config.steps` steps a model.
    """
    training = _constant(config.steps, config.batch_size, config.learning_rate)
    looked_at = halvings(config.steps, 5)
    return TrainingAttack("retain_tuning", _whole(model), training, Images(("retain",)), looked_at)


def relearning(model: Model, config: AuditConfig, shots: int) -> TrainingAttack:
    """Train encoder and decoder on a few forget images: how many does it take?

    The attack by relearning of Hu et al. 2024, "Unlearning or Obfuscating?" (arXiv 2406.13356). Cost:
    `config.shot_steps` steps a model for each number of images.
    """
    training = _constant(config.shot_steps, config.batch_size, config.shot_learning_rate)
    looked_at = halvings(config.shot_steps, 3)
    return TrainingAttack(
        f"relearning_{shots}", _whole(model), training, Images(("forget",), shots), looked_at
    )


def fresh_decoder(model: Model, config: AuditConfig, images: str) -> TrainingAttack:
    """Train a new decoder over the frozen encoder: what do the encoder's features still hold?

    The "secondary autoencoder" that reviewers of arXiv 2402.00351 asked for. Over the original encoder it
    shows what such a decoder can reach at all.

    Args:
      model: the model.
      config: the audit.
      images: "retain" or "all": what the decoder is trained on. Cost: `config.decoder_steps` steps a model,
        without the encoder's backward pass.
    """

    fresh = fresh_parts(model, ["decoder"])

    def start(params: Params, rng: jax.Array) -> Params:
        return {**params, **fresh(rng)}

    stage = model.pretraining_stages()[-1]._replace(trained=("decoder",))
    task = dataclasses.replace(pretraining_objective(stage, _parts(model)), start=start)
    training = _constant(config.decoder_steps, config.batch_size, config.learning_rate)
    sets = ("retain",) if images == "retain" else ("retain", "forget")
    return TrainingAttack(f"fresh_decoder_{images}", task, training, Images(sets), (config.decoder_steps,))


def training_attacks(model: Model, config: AuditConfig) -> Mapping[str, TrainingAttack]:
    """Those that `config.attacks` asks for, by name."""
    attacks = []
    if "retain_tuning" in config.attacks:
        attacks.append(retain_tuning(model, config))
    if "relearning" in config.attacks:
        attacks += [relearning(model, config, shots) for shots in config.shots]
    if "fresh_decoder" in config.attacks:
        attacks += [fresh_decoder(model, config, images) for images in ("retain", "all")]
    return {attack.name: attack for attack in attacks}


def halvings(steps: int, count: int) -> tuple[int, ...]:
    """`steps` and what is left of it by halving, at most `count` numbers above 0, ascending."""
    return tuple(sorted({steps >> power for power in range(count)} - {0}))


def _constant(steps: int, batch_size: int, rate: float) -> TrainingConfig:
    return TrainingConfig(
        steps, batch_size, rate, schedule="constant", weight_decay=0.0, checkpoint_every=500, log_every=50
    )


def _whole(model: Model) -> Objective:
    return pretraining_objective(model.pretraining_stages()[-1], _parts(model))


def _parts(model: Model) -> tuple[str, ...]:
    return tuple(model.shapes())
