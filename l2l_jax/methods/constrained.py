"""Unlearning as constrained optimisation: one loss is lowered while the other stays below a bound."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from l2l_jax.losses import NoiseKind
from l2l_jax.methods.base import Inputs, Mean, Phases, Task, Terms
from l2l_jax.methods.baselines import encoder_task
from l2l_jax.methods.gradients import set_gradients
from l2l_jax.models.base import Model, Params

SMALL = 1e-7
"""Keeps the multiplier finite where the gradient of the constrained loss vanishes."""


@dataclasses.dataclass(frozen=True)
class Constrained:
    """The direction that lowers one set's loss subject to the other's.

        direction = ∇objective + η ∇constraint
        η = max((ψ − ∇constraint · ∇objective) / (‖∇constraint‖² + 1e-7), 0)

    Along it the constrained loss falls at the rate ψ at least. Without bounds ψ = ‖∇constraint‖²: it falls
    as if it were alone. With bounds ψ = (constraint − ε) · ‖∇constraint‖²: it falls while it is above ε,
    and may rise while it is below. After Feng et al. (2024, arXiv 2408.01689), who have published no code;
    the equations are theirs, the gradients are those of the whole batch, over all devices.

    Attributes:
      constraint: the set whose loss is constrained, "retain" or "forget".
      bounds: least and greatest ε. ε = greatest − alpha · (greatest − least) with alpha, the weight of
        the forget term, cut to [0, 1].
    """

    constraint: str
    bounds: tuple[float, float] | None = None

    def compute(
        self, task: Task, trained: Params, frozen: Params, inputs: Inputs, alpha: jax.Array, mean: Mean
    ) -> tuple[Terms, dict[str, Params]]:
        """See `GradientRule`; "loss" is the objective."""
        terms, gradients = set_gradients(task, trained, frozen, inputs)
        return {"loss": terms[self.objective], **terms}, gradients

    def combine(self, terms: Terms, gradients: dict[str, Params], alpha: jax.Array) -> Params:
        """See `GradientRule`."""
        constraint, objective = gradients[self.constraint], gradients[self.objective]
        square = optax.tree.vdot(constraint, constraint)
        fall = square
        if self.bounds is not None:
            least, greatest = self.bounds
            epsilon = greatest - jnp.clip(alpha, 0, 1) * (greatest - least)
            fall = (terms[self.constraint] - epsilon) * square
        eta = jnp.maximum((fall - optax.tree.vdot(constraint, objective)) / (square + SMALL), 0)
        return jax.tree.map(lambda o, c: o + eta * c, objective, constraint)

    @property
    def objective(self) -> str:
        """The set whose loss is lowered."""
        return {"retain": "forget", "forget": "retain"}[self.constraint]


def epsilon_task(model: Model, *, noise: NoiseKind = "normal") -> Task:
    """ε-constrained unlearning: the least retain loss whose forget loss is at most ε.

    The losses are those of the paper's method. Phase I finds the range of ε: in I-a the forget loss falls
    as if it were alone, in I-b the retain loss does and the forget loss follows; the forget loss at the
    ends of the two is the least and the greatest ε. Phase II is constrained by an ε between them. All phases
    start from the original model.

    Args:
      model: the model; the frozen "encoder" is the teacher.
      noise: kind of the noise images.
    """

    def bounded(levels: Mapping[str, Mapping[str, float]]) -> Constrained:
        ends = sorted((levels["phase_1a"]["forget"], levels["phase_1b"]["forget"]))
        return Constrained("forget", (ends[0], ends[1]))

    first = Constrained("forget")
    phases = Phases({"phase_1a": first, "phase_1b": Constrained("retain")}, bounded)
    return encoder_task(model, noise=noise)._replace(gradients=first, phases=phases)
