"""The method "relearn_aware"."""

import dataclasses
from typing import Annotated

import pydantic

from l2l_jax.methods.base import Method, Task, register
from l2l_jax.methods.deep import relearn_aware_task
from l2l_jax.methods.targets import BLUR, TargetKind
from l2l_jax.models.base import Model


@register("relearn_aware")
@dataclasses.dataclass(frozen=True)
class RelearnAware(Method):
    """Forget in a way that survives an attacker's first training steps.

    Attributes:
      target: Images that forget images are trained towards: "noise", "blur" (the image itself, blurred) or
        "mean" (the mean retain image of the batch).
      target_blur: Standard deviation of "blur" as a share of the image's side.
      attack_steps: Simulated steps of the attacker; each costs half a training step.
      attack_rate: Change of every weight in one of them.
    """

    target: TargetKind = "noise"
    target_blur: Annotated[float, pydantic.Field(gt=0)] = BLUR
    attack_steps: Annotated[int, pydantic.Field(ge=1)] = 1
    attack_rate: Annotated[float, pydantic.Field(gt=0)] = 1e-3

    def objective(self, model: Model) -> Task:
        return relearn_aware_task(model, **dataclasses.asdict(self))
