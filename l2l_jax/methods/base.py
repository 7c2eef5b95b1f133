"""Base class of unlearning methods and the objective of a training step."""

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from l2l_jax.models.base import Model, Params, PretrainingStage
from l2l_jax.utils.registry import Registry

Terms = dict[str, jax.Array]  # scalars to log: "loss", and "retain" and "forget" if the batch has both
Inputs = Mapping[str, Any]  # inputs of a loss: trees of arrays with a leading batch axis
Mean = Callable[[Any], Any]  # turns means over a device's rows into means over the batch
# `(trained, frozen, inputs, alpha) -> (loss, terms)`, means over the rows of a device
Loss = Callable[[Params, Params, Inputs, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


class GradientRule(Protocol):
    """An update direction other than the gradient of the loss."""

    @property
    def objective(self) -> str:
        """Return the name of the term that is logged as "loss"."""

    def combine(self, terms: Terms, gradients: Mapping[str, Params], alpha: jax.Array) -> Params:
        """Return the direction, given both terms and their gradients over the whole batch."""


class Phases(NamedTuple):
    """Runs before a method's own run, from the same start, that determine its gradient rule."""

    rules: Mapping[str, GradientRule]  # gradient rule of each run, by name
    # `{name: final terms} -> GradientRule` of the method's own run
    settle: Callable[[Mapping[str, Mapping[str, float]]], GradientRule]


class OneShot(NamedTuple):
    """Least squares instead of training steps; see `l2l_jax.methods.ntk` and `l2l_jax.train.one_shot`."""

    outputs: Callable[[Params, Any], Any]  # `(params, rows) -> outputs`, a tree of arrays; linearized
    losses: Callable[[Any, Any], jax.Array]  # `(outputs, rows) -> [row]`, convex in the outputs
    # Options of `l2l_jax.methods.ntk.Ntk`
    scale: float
    damping: float
    iterations: int
    batches: int


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
    """A loss on batches `{set: images}` in two stages, `prepare` and `loss`; a batch can be split in between.

    Attributes:
      trained: Parts of the parameters to train.
      frozen: Parts of the original parameters to read; no others need to be on the devices.
      prepare: `(frozen, batch, rng, axis_name=None) -> Inputs`: all random draws and batch statistics. With
        `axis_name`, the batch is split over that mapped axis, and the inputs are this device's rows of the
        inputs that a single device would compute.
      loss: The loss, and the terms "retain" and "forget" if the batch has both sets.
      sets: Names of the image sets of a batch.
      look_ahead: `(trained, frozen, inputs, mean) -> trained parts`, passed to the loss as the input "ahead"
        and not differentiated.
      rule: Update direction; None: the gradient of the loss.
      phases: Preceding runs that determine `rule`.
      one_shot: Replacement of the training steps, for methods without any.
      start: `(params, rng) -> params`: the initial parameters, given all original parts; None: the original
        parameters.
      saliency: Share of the trained weights that may change, see `restrict`. The others keep their original
        values regardless of `start`.
      expand: `(trained, frozen) -> parts` that the loss reads, if they differ from the trained parameters.
      merge: `(params, trained) -> params`: the trained model, all parts as host arrays.
      cast: Function that casts some parts of the parameters to the compute dtype.
    """

    trained: tuple[str, ...]
    frozen: tuple[str, ...]
    prepare: Callable[..., Inputs]
    loss: Loss
    sets: tuple[str, ...] = ("retain", "forget")
    look_ahead: Callable[[Params, Params, Inputs, Mean], Params] | None = None
    rule: GradientRule | None = None
    phases: Phases | None = None
    one_shot: OneShot | None = None
    start: Callable[[Params, jax.Array], Params] | None = None
    saliency: float = 1.0
    expand: Callable[[Params, Params], Params] | None = None
    merge: Callable[[Params, Params], Params] = lambda params, trained: {**params, **trained}
    cast: Callable[[Params], Params] = lambda params: params

    def initial(self, params: Params, rng: jax.Array) -> Params:
        """Return the trained parts before the first step, given all parts of the original model."""
        started = params if self.start is None else self.start(params, rng)
        return {part: started[part] for part in self.trained}

    def compose(self, params: Params, trained: Params) -> Params:
        """Return all parts of the trained model on the devices, for computation."""
        return {**params, **(trained if self.expand is None else self.expand(trained, params))}

    def gradients(
        self, trained: Params, frozen: Params, inputs: Inputs, alpha: jax.Array, mean: Mean = lambda x: x
    ) -> tuple[Terms, dict[str, Params]]:
        """Return the terms with "loss", and the gradients for `direction`, over these rows.

        Gradients are averaged over microbatches and devices before `direction`, the only step that may be
        nonlinear in them.
        """
        if self.expand is not None:
            expand = self.expand
            weights, back = jax.vjp(lambda x: expand(x, frozen), trained)
            inner = dataclasses.replace(self, expand=None)
            terms, gradients = inner.gradients(weights, frozen, inputs, alpha, mean)
            return terms, {name: back(gradient)[0] for name, gradient in gradients.items()}
        if self.look_ahead is not None:
            inputs = {**inputs, "ahead": self.look_ahead(trained, frozen, inputs, mean)}
        if self.rule is None:
            measure = jax.value_and_grad(self.loss, has_aux=True)
            (loss, terms), gradient = measure(trained, frozen, inputs, alpha)
            return {"loss": loss, **terms}, {"loss": gradient}
        measured = {name: self.term_gradient(name, trained, frozen, inputs) for name in self.sets}
        terms = {name: value for name, (value, _) in measured.items()}
        gradients = {name: gradient for name, (_, gradient) in measured.items()}
        return {"loss": terms[self.rule.objective], **terms}, gradients

    def direction(self, terms: Terms, gradients: Mapping[str, Params], alpha: jax.Array) -> Params:
        """Return the update direction for the optimizer, given `gradients` of the whole batch."""
        return gradients["loss"] if self.rule is None else self.rule.combine(terms, gradients, alpha)

    def term_gradient(
        self, name: str, trained: Params, frozen: Params, inputs: Inputs
    ) -> tuple[jax.Array, Params]:
        """Return the value and the gradient of one term over these rows."""
        return jax.value_and_grad(lambda x: self.loss(x, frozen, inputs, jnp.float32(0))[1][name])(trained)


@dataclasses.dataclass(frozen=True)
class Method(abc.ABC):
    """An unlearning method; the fields of a subclass are its options.

    Attributes:
      training: Defaults of this method for fields of the training config.
      takes_noise: Whether a batch may contain the teacher's noise images, such as codes of a noise bank.
      max_weight: Largest weight of the forget term that the method accepts.
      weight_option: Name of the option that sets the weight of the forget term.
    """

    training: ClassVar[Mapping[str, Any]] = {}
    takes_noise: ClassVar[bool] = False
    max_weight: ClassVar[float] = math.inf
    weight_option: ClassVar[str] = "alpha"

    @abc.abstractmethod
    def objective(self, model: Model) -> Objective:
        """Return the objective of a training step of this method on a model."""

    def initial_weight(self, alpha: float) -> float:
        """Return the weight of the forget term in the first step, given `config.unlearn.alpha`."""
        return alpha

    @property
    def batch_divisor(self) -> int:
        """Return the number that must divide the number of rows of a microbatch."""
        return 1


METHODS: Registry[Method] = Registry("method")
register = METHODS.register


def unlearning_objective(
    model: Model,
    trained: tuple,
    prepare: Callable,
    loss: Loss,
    *,
    teacher: tuple[str, ...] = (),
    **fields: Any,
) -> Objective:
    """Return an objective on retain and forget images, with these and other fields of `Objective`.

    `teacher` names parts of the original model to read, in addition to those that `Model.corrupt` reads.
    """
    frozen = (*teacher, *model.corruption_parts)
    return Objective(trained, frozen, prepare, loss, **{"cast": model.in_compute_dtype, **fields})


def pretraining_objective(stage: PretrainingStage, parts: tuple[str, ...]) -> Objective:
    """Return the objective of a pretraining phase of a model with these parts, on the single set "train"."""

    def prepare(frozen, batch, rng, axis_name=None):
        return {"train": stage.prepare(frozen, batch["train"], rng, axis_name)}

    def loss(trained, frozen, inputs, alpha):
        return stage.loss({**frozen, **trained}, inputs["train"]).mean(), {}

    frozen = tuple(part for part in parts if part not in stage.trained)
    return Objective(stage.trained, frozen, prepare, loss, sets=("train",))
