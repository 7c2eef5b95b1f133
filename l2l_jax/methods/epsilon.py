"""The method "epsilon"."""

import dataclasses
from typing import Annotated, ClassVar

import pydantic

from l2l_jax.losses import NoiseKind
from l2l_jax.methods.base import Method, Task, register
from l2l_jax.methods.constrained import epsilon_task
from l2l_jax.models.base import Model


@register("epsilon")
@dataclasses.dataclass(frozen=True)
class Epsilon(Method):
    """Minimize the paper's retain loss with the forget loss bounded by ε.

    Attributes:
      noise: Noise shown to the teacher in place of forget images: "normal" (mean and standard deviation of
        the batch's pixels), "uniform" or "constant".
      epsilon_ratio: Position of ε in its range, in place of alpha: 0 forgets most, 1 costs least.
    """

    noise: NoiseKind = "normal"
    epsilon_ratio: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.5

    max_weight: ClassVar[float] = 1.0
    weight_option: ClassVar[str] = "epsilon_ratio"

    def initial_weight(self, alpha: float) -> float:
        return 1 - self.epsilon_ratio

    def objective(self, model: Model) -> Task:
        return epsilon_task(model, noise=self.noise)
