"""What a training step does, apart from optimising: draw, measure losses, take gradients of them."""

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from l2l_jax.models.base import Model, Params, PretrainingStage
from l2l_jax.utils.batch_axis import deinterleave, interleave
from l2l_jax.utils.registry import Registry

Terms = dict[str, jax.Array]
"""Scalars to log: "loss", and "retain" and "forget" where there are both."""

Inputs = Mapping[str, Any]
"""What the losses of each set are measured on, by set: trees whose leaves start with the batch axis."""

Mean = Callable[[Any], Any]
"""Means over a device's rows → means over the batch."""


class GradientRule(Protocol):
    """How gradients of a task's losses become one direction for the optimiser.

    Gradients are averaged over accumulated parts and over devices between the two calls: whatever is not
    linear in them belongs to `combine`.
    """

    def compute(
        self, task: "Task", trained: Params, frozen: Params, inputs: Inputs, alpha: jax.Array, mean: Mean
    ) -> tuple[Terms, dict[str, Params]]:
        """Terms, and named gradients of the trained parts, over these rows."""

    def combine(self, terms: Terms, gradients: dict[str, Params], alpha: jax.Array) -> Params:
        """The direction, from terms and gradients of the whole batch."""


class WeightedSum:
    """The gradient of retain loss + sign · α · forget loss, or of the only set's loss."""

    def compute(self, task, trained, frozen, inputs, alpha, mean):
        value_and_grad = jax.value_and_grad(
            lambda x: total_loss(task, x, frozen, inputs, alpha), has_aux=True
        )
        (loss, terms), gradient = value_and_grad(trained)
        return {"loss": loss, **terms}, {"total": gradient}

    def combine(self, terms, gradients, alpha):
        return gradients["total"]


class Phases(NamedTuple):
    """Runs that come before a task's own, from the same start, to learn where it is to go.

    Attributes:
      rules: the gradient rule of each, by name.
      settle: `{name: terms at its end} -> GradientRule` of the task's own run.
    """

    rules: Mapping[str, GradientRule]
    settle: Callable[[Mapping[str, Mapping[str, float]]], GradientRule]


def replaced(params: Params, trained: Params) -> Params:
    """All parts, the trained ones in place of the original ones."""
    return {**params, **trained}


def identity(params: Params) -> Params:
    """The parameters themselves."""
    return params


class Task(NamedTuple):
    """Losses over batches `{set: images}`, in two steps, so that a batch can be split in between.

    Attributes:
      trained: the parts of the parameters to train.
      frozen: the parts of the original parameters to read; no others need to be on the devices.
      sets: the names of the image sets in a batch: "retain" and "forget", or a single one.
      prepare: `(frozen, batch, rng, axis_name=None) -> Inputs`: all randomness and batch statistics.
        With `axis_name` the batch is split over that mapped axis, and what is returned are this
        device's rows of what it would be on one device.
      losses: `(trained, frozen, rows) -> [row]`, float32: the loss of every example of a set. Where the
        inputs of all sets have one structure, their rows are also measured together, interleaved.
      forget_sign: -1 where the forget loss is to be raised.
      gradients: how losses become the optimiser's direction.
      phases: runs that come first, and set `gradients`; None: there are none.
      start: `(params, rng) -> params`: the parameters to start from, given the original ones, all parts;
        None: the original ones.
      saliency: share of the trained weights that may change, see `l2l_jax.methods.saliency`; the others
        keep their original values, whatever the start is.
      merge: `(params, trained) -> params`: the model that training gives, all parts as host arrays.
      compose: the same on devices, to restore images with during training.
      cast: some parts of the parameters → each array in the type that it is computed with, as
        `Model.in_compute_dtype`; the others are given what it returns.
    """

    trained: tuple[str, ...]
    frozen: tuple[str, ...]
    sets: tuple[str, ...]
    prepare: Callable[..., Inputs]
    losses: Callable[[Params, Params, Any], jax.Array]
    forget_sign: float = 1.0
    gradients: GradientRule = WeightedSum()
    phases: Phases | None = None
    start: Callable[[Params, jax.Array], Params] | None = None
    saliency: float = 1.0
    merge: Callable[[Params, Params], Params] = replaced
    compose: Callable[[Params, Params], Params] = replaced
    cast: Callable[[Params], Params] = identity

    def initial(self, params: Params, rng: jax.Array) -> Params:
        """The trained parts before the first step, given all parts of the original model."""
        started = params if self.start is None else self.start(params, rng)
        return {part: started[part] for part in self.trained}


def unlearning_task(
    model: Model, trained: tuple[str, ...], prepare: Callable[..., Inputs],
    losses: Callable[[Params, Params, Any], jax.Array], *, teacher: tuple[str, ...] = (),
) -> Task:  # fmt: skip
    """A task on retain and forget images.

    Args:
      model: the model.
      trained, prepare, losses: see `Task`.
      teacher: the parts of the original model that are read, besides those that `corrupt` needs.
    """
    return Task(
        trained=trained,
        frozen=(*teacher, *model.corruption_parts),
        sets=("retain", "forget"),
        prepare=prepare,
        losses=losses,
        cast=model.in_compute_dtype,
    )


def total_loss(
    task: Task, trained: Params, frozen: Params, inputs: Inputs, alpha: float | jax.Array = 0.0
) -> tuple[jax.Array, Terms]:
    """retain + sign · α · forget with the two terms, or the loss of the only set without terms."""
    means = _mean_losses(task, trained, frozen, inputs)
    if len(means) == 1:
        return means[task.sets[0]], {}
    return weighted(task, means, alpha), means


def _mean_losses(task: Task, trained: Params, frozen: Params, inputs: Inputs) -> Terms:
    """The mean loss of each set.

    Sets whose inputs are alike run through the networks together, interleaved, so that a sharded batch
    stays where it is.
    """
    if len(task.sets) == 2 and _alike(*(inputs[of] for of in task.sets)):
        first, second = task.sets
        losses = task.losses(trained, frozen, interleave(inputs[first], inputs[second]))
        separate = dict(zip(task.sets, deinterleave(losses), strict=True))
    else:
        separate = {of: task.losses(trained, frozen, inputs[of]) for of in task.sets}
    return {of: losses.mean() for of, losses in separate.items()}


def weighted(task: Task, terms: Mapping[str, jax.Array], alpha: float | jax.Array) -> jax.Array:
    """retain + sign · α · forget."""
    return terms["retain"] + task.forget_sign * alpha * terms["forget"]


def _alike(first: Any, second: Any) -> bool:
    return jax.tree.map(jnp.shape, first) == jax.tree.map(jnp.shape, second)


def pretraining_task(stage: PretrainingStage, parts: tuple[str, ...]) -> Task:
    """Train `stage` of a model whose parameters have `parts`, on the one set "train"."""

    def prepare(frozen, batch, rng, axis_name=None):
        return {"train": stage.prepare(frozen, batch["train"], rng, axis_name)}

    def losses(trained, frozen, rows):
        return stage.loss({**frozen, **trained}, rows)

    frozen = tuple(part for part in parts if part not in stage.trained)
    return Task(stage.trained, frozen, ("train",), prepare, losses)


@dataclasses.dataclass(frozen=True)
class Method(abc.ABC):
    """An unlearning method; the fields of a subclass are its options.

    Attributes:
      takes_noise: A batch may bring the teacher's noise images itself, such as codes of a noise bank.
      max_weight: Largest weight of the forget term that the method accepts.
      weight_option: Name of the option that sets the weight of the forget term.
    """

    takes_noise: ClassVar[bool] = False
    max_weight: ClassVar[float] = math.inf
    weight_option: ClassVar[str] = "alpha"

    @abc.abstractmethod
    def objective(self, model: Model) -> Task:
        """Return what a training step of this method does on a model."""

    def initial_weight(self, alpha: float) -> float:
        """Return the weight of the forget term of the first step, given `config.unlearn.alpha`."""
        return alpha

    @property
    def batch_divisor(self) -> int:
        """Number of which the rows of an accumulated part of a batch must be a multiple."""
        return 1


METHODS: Registry[Method] = Registry("method")
register = METHODS.register
