"""The method "retain_label"."""

import dataclasses

from l2l_jax.methods.base import Method, Task, register
from l2l_jax.methods.baselines import retain_label_task
from l2l_jax.models.base import Model


@register("retain_label")
@dataclasses.dataclass(frozen=True)
class RetainLabel(Method):
    """Train forget images towards the original model's outputs on retain images."""

    def objective(self, model: Model) -> Task:
        return retain_label_task(model)
