"""The method "encoder"."""

import dataclasses
from typing import ClassVar

from l2l_jax.losses import NoiseKind
from l2l_jax.methods.base import Method, Task, register
from l2l_jax.methods.baselines import encoder_task
from l2l_jax.models.base import Model


@register("encoder")
@dataclasses.dataclass(frozen=True)
class Encoder(Method):
    """The paper's method (Li et al. 2024): retrain the encoder alone.

    Attributes:
      noise: Noise shown to the teacher in place of forget images: "normal" (mean and standard deviation of
        the batch's pixels), "uniform" or "constant".
    """

    takes_noise: ClassVar[bool] = True
    noise: NoiseKind = "normal"

    def objective(self, model: Model) -> Task:
        return encoder_task(model, noise=self.noise)
