"""The method "noisy_label"."""

import dataclasses

from l2l_jax.methods.base import Method, Task, register
from l2l_jax.methods.baselines import noisy_label_task
from l2l_jax.models.base import Model


@register("noisy_label")
@dataclasses.dataclass(frozen=True)
class NoisyLabel(Method):
    """Train forget images towards Gaussian noise."""

    def objective(self, model: Model) -> Task:
        return noisy_label_task(model)
