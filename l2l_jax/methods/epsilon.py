"""Unlearning as constrained optimization: one term is minimized while the other stays below a bound."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
import optax
import pydantic

from l2l_jax.losses import NoiseKind, unlearning_loss
from l2l_jax.methods.base import Method, Objective, Phases, Terms, register, unlearning_objective
from l2l_jax.methods.inputs import student_and_teacher_inputs
from l2l_jax.models.base import Model, Params

SMALL = 1e-7  # keeps the multiplier finite where the gradient of the constrained term vanishes


@dataclasses.dataclass(frozen=True)
class Constrained:
    """A `GradientRule` that minimizes one term subject to a bound on the other.

        direction = ∇objective + η ∇constraint
        η = max((ψ − ∇constraint · ∇objective) / (‖∇constraint‖² + 1e-7), 0)

    The constrained term decreases at least at the rate ψ. Without bounds, ψ = ‖∇constraint‖²: it decreases as
    if it were minimized alone. With bounds, ψ = (constraint − ε) · ‖∇constraint‖²: it decreases while above ε
    and may increase while below. After Feng et al. (2024, arXiv 2408.01689), who have not published code.
    """

    constraint: str  # the constrained term, "retain" or "forget"
    # Least and greatest ε. ε = greatest − alpha · (greatest − least), with alpha, the weight of the forget
    # term, clipped to [0, 1]
    bounds: tuple[float, float] | None = None

    @property
    def objective(self) -> str:
        return "forget" if self.constraint == "retain" else "retain"

    def combine(self, terms: Terms, gradients: Mapping[str, Params], alpha: jax.Array) -> Params:
        constraint, objective = gradients[self.constraint], gradients[self.objective]
        square = optax.tree.vdot(constraint, constraint)
        psi = square
        if self.bounds is not None:
            least, greatest = self.bounds
            epsilon = greatest - jnp.clip(alpha, 0, 1) * (greatest - least)
            psi = (terms[self.constraint] - epsilon) * square
        eta = jnp.maximum((psi - optax.tree.vdot(constraint, objective)) / (square + SMALL), 0)
        return jax.tree.map(lambda o, c: o + eta * c, objective, constraint)


@register("epsilon")
@dataclasses.dataclass(frozen=True)
class Epsilon(Method):
    """Minimization of the paper's retain term with the forget term bounded by ε.

    Phase I determines the range of ε: phase I-a minimizes the forget term as if it were alone, phase I-b the
    retain term. The forget terms at the ends of both phases are the least and the greatest ε. Phase II is
    constrained by an ε in between. All phases start from the original model.

    Attributes:
      noise: Kind of noise that replaces forget images for the teacher, see `l2l_jax.losses.noise_images`.
      epsilon_ratio: Position of ε in its range, used instead of alpha: 0 forgets the most, 1 costs the least.
    """

    max_weight: ClassVar[float] = 1.0
    weight_option: ClassVar[str] = "epsilon_ratio"
    noise: NoiseKind = "normal"
    epsilon_ratio: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.5

    def initial_weight(self, alpha: float) -> float:
        return 1 - self.epsilon_ratio

    def objective(self, model: Model) -> Objective:
        def loss(trained, frozen, inputs, alpha):
            # Not interleaved, so the gradient of each term needs a pass over its own rows only.
            student, teacher = (functools.partial(model.encode, x["encoder"]) for x in (trained, frozen))
            retain = student(inputs["retain"]), teacher(inputs["retain"])
            return unlearning_loss(*retain, student(inputs["forget"]), teacher(inputs["noise"]), alpha=alpha)

        def bound(ends: Mapping[str, Mapping[str, float]]) -> Constrained:
            least, greatest = sorted(ends[phase]["forget"] for phase in ("phase_1a", "phase_1b"))
            return Constrained("forget", (least, greatest))

        first, parts = Constrained("forget"), ("encoder",)
        prepare = student_and_teacher_inputs(model, self.noise)
        phases = Phases({"phase_1a": first, "phase_1b": Constrained("retain")}, bound)
        return unlearning_objective(model, parts, prepare, loss, teacher=parts, rule=first, phases=phases)
