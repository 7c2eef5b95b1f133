"""The paper's loss on the whole model."""

import dataclasses

from l2l_jax.losses import UnlearningInputs, encoder_unlearning_loss
from l2l_jax.methods.base import Objective, register, unlearning_objective
from l2l_jax.methods.encoder import Encoder
from l2l_jax.methods.inputs import student_and_teacher_inputs
from l2l_jax.models.base import Model


@register("whole")
@dataclasses.dataclass(frozen=True)
class Whole(Encoder):
    """The paper's loss on features and outputs, with encoder and decoder trained.

        d(T(x_r), T(x_r)) + alpha · d(T(x_f), T(n)),   d(a, b) = ‖E(a) − E_0(b)‖² + ‖h(a) − h_0(b)‖²

    The paper trains only the encoder, so the frozen decoder keeps its knowledge. The original model's outputs
    at visible positions are also distilled.
    """

    def objective(self, model: Model) -> Objective:
        def loss(trained, frozen, inputs, alpha):
            student, inputs = {**frozen, **trained}, UnlearningInputs(**inputs)
            return encoder_unlearning_loss(model.encode_and_predict, student, frozen, inputs, alpha=alpha)

        prepare, parts = student_and_teacher_inputs(model, self.noise), model.generative_parts
        return unlearning_objective(model, parts, prepare, loss, teacher=parts)
