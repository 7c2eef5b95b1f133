"""The method "max_loss"."""

import dataclasses

from l2l_jax.methods.base import Method, Task, register
from l2l_jax.methods.baselines import max_loss_task
from l2l_jax.models.base import Model


@register("max_loss")
@dataclasses.dataclass(frozen=True)
class MaxLoss(Method):
    """Raise the model's own training loss on forget images."""

    def objective(self, model: Model) -> Task:
        return max_loss_task(model)
