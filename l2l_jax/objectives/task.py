"""What a training step does, apart from optimising: draw, then measure a loss."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from l2l_jax.models.base import ImageToImageModel, Params, PretrainingStage
from l2l_jax.objectives.encoder import (
    UnlearningInputs,
    batch_noise,
    corruption_keys,
    encoder_unlearning_loss,
)
from l2l_jax.objectives.noise import NoiseKind


class Task(NamedTuple):
    """A loss over batches `{set: images}` in two halves, so that a batch can be split in between.

    Attributes:
      trained: the parts of the parameters to train.
      frozen: the parts of the original parameters to read; no others need to be on the devices.
      sets: the names of the image sets in a batch.
      prepare: `(frozen, batch, rng, axis_name=None) -> inputs`: all randomness and batch statistics;
        leaves of `inputs` start with the batch axis. With `axis_name` the batch is split over that
        mapped axis, and `inputs` are this device's rows of what they would be on one device.
      loss: `(trained, frozen, inputs) -> (scalar, terms)`, both means over the rows of `inputs`.
    """

    trained: tuple[str, ...]
    frozen: tuple[str, ...]
    sets: tuple[str, ...]
    prepare: Callable[..., Any]
    loss: Callable[[Params, Params, Any], tuple[jax.Array, dict[str, jax.Array]]]


def pretraining_task(stage: PretrainingStage, parts: tuple[str, ...]) -> Task:
    """Train `stage` of a model whose parameters have `parts`, on the one set "train"."""

    def prepare(frozen, batch, rng, axis_name=None):
        return stage.prepare(frozen, batch["train"], rng, axis_name)

    def loss(trained, frozen, inputs):
        return stage.loss({**frozen, **trained}, inputs).mean(), {}

    frozen = tuple(part for part in parts if part not in stage.trained)
    return Task(stage.trained, frozen, ("train",), prepare, loss)


def encoder_task(model: ImageToImageModel, *, alpha: float, noise: NoiseKind) -> Task:
    """The paper's method: `encoder_unlearning_loss` on a model's encoder.

    Args:
      model: the model; the frozen "encoder" is the teacher.
      alpha: weight of the forget term.
      noise: kind of the noise images.
    """

    def prepare(frozen, batch, rng, axis_name=None):
        retain, forget = batch["retain"], batch["forget"]
        drawn = batch_noise(
            retain, forget, rng, kind=noise, value_range=model.value_range, axis_name=axis_name
        )
        retain_key, forget_key = corruption_keys(rng)
        return UnlearningInputs(
            retain=model.corrupt(frozen, retain, retain_key, axis_name),
            forget=model.corrupt(frozen, forget, forget_key, axis_name),
            noise=model.corrupt_noise(frozen, forget, drawn, forget_key, axis_name),
        )

    def loss(trained, frozen, inputs):
        return encoder_unlearning_loss(
            model.encode, trained["encoder"], frozen["encoder"], inputs, alpha=alpha
        )

    return Task(
        trained=("encoder",),
        frozen=("encoder", *model.corruption_parts),
        sets=("retain", "forget"),
        prepare=prepare,
        loss=loss,
    )
