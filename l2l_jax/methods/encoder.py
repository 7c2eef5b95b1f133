"""The paper's method."""

import dataclasses
from typing import ClassVar

from l2l_jax.losses import NoiseKind, UnlearningInputs, encoder_unlearning_loss
from l2l_jax.methods.base import Method, Objective, register, unlearning_objective
from l2l_jax.methods.inputs import student_and_teacher_inputs
from l2l_jax.models.base import Model


@register("encoder")
@dataclasses.dataclass(frozen=True)
class Encoder(Method):
    """The paper's method (Li et al. 2024), which trains only the encoder.

    Attributes:
      noise: Kind of noise that replaces forget images for the teacher, see `l2l_jax.losses.noise_images`.
    """

    takes_noise: ClassVar[bool] = True
    noise: NoiseKind = "normal"

    def objective(self, model: Model) -> Objective:
        def loss(trained, frozen, inputs, alpha):
            return encoder_unlearning_loss(
                model.encode, trained["encoder"], frozen["encoder"], UnlearningInputs(**inputs), alpha=alpha
            )

        prepare = student_and_teacher_inputs(model, self.noise)
        return unlearning_objective(model, ("encoder",), prepare, loss, teacher=("encoder",))
