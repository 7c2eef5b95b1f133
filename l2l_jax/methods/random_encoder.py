"""The method "random_encoder"."""

import dataclasses

from l2l_jax.methods.base import Method, Task, register
from l2l_jax.methods.baselines import random_encoder_task
from l2l_jax.models.base import Model


@register("random_encoder")
@dataclasses.dataclass(frozen=True)
class RandomEncoder(Method):
    """Send the encoder's features of forget images to Gaussian noise."""

    def objective(self, model: Model) -> Task:
        return random_encoder_task(model)
