"""The method "whole"."""

import dataclasses
from typing import ClassVar

from l2l_jax.losses import NoiseKind
from l2l_jax.methods.base import Method, Task, register
from l2l_jax.methods.deep import whole_task
from l2l_jax.models.base import Model


@register("whole")
@dataclasses.dataclass(frozen=True)
class Whole(Method):
    """Apply the paper's loss to the outputs of encoder and decoder, and train both.

    Attributes:
      noise: Noise shown to the teacher in place of forget images: "normal" (mean and standard deviation of
        the batch's pixels), "uniform" or "constant".
    """

    takes_noise: ClassVar[bool] = True
    noise: NoiseKind = "normal"

    def objective(self, model: Model) -> Task:
        return whole_task(model, noise=self.noise)
