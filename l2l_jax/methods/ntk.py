"""One-shot unlearning by linearized least squares."""

import dataclasses
from typing import Annotated, ClassVar

import pydantic

from l2l_jax.losses import noisy_label_loss
from l2l_jax.methods.base import Method, Objective, OneShot, register
from l2l_jax.methods.inputs import generative_objective
from l2l_jax.models.base import Model

Positive = Annotated[float, pydantic.Field(gt=0)]
Count = Annotated[int, pydantic.Field(ge=1)]


@register("ntk")
@dataclasses.dataclass(frozen=True)
class Ntk(Method):
    """A single weight update, from the linearized solution on all images to that on retain images.

        w = θ_0 + scale · (w_r − w_c)
        w_c minimizes (1 − q) · L_lin(x_r) + q · L_lin(x_f) + λ/2 ‖w − θ_0‖²
        w_r minimizes (1 − q) · L_lin(x_r) + λ/2 ‖w − θ_0‖²

    q is the share of forget images among all images, and L the model's own training loss of the linearized
    model h_lin(w) = h_0 + ∂h_0/∂w · (w − θ_0). The solutions are thus the models that further training with
    and without the forget images converges to. If L is a squared error (MAE, Palette), both problems are
    linear least squares; the cross-entropy of MAGE is replaced by its second-order expansion in the logits,
    which is the generalized Gauss–Newton step. The targets are the true pixels, codes or noise: with the
    original model's features as targets, as in the paper's loss, both residuals would be 0 and the weights
    would not change.

    After Golatkar et al. (ECCV 2020, "Forgetting Outside the Box") for all weights, and Li et al. (2023,
    arXiv 2312.14923, "Fast-NTK") for a few weights: set `config.unlearn.adapter` to "norms" or "lora". The
    systems are solved by conjugate gradients on Jacobian-vector products; the Jacobian is not stored.

    Attributes:
      scale: Multiple of w_r − w_c. A retain budget chooses it from 2^-6 to 2^6 times this value.
      damping: λ, relative to losses that are means over images.
      iterations: Maximum number of curvature products for each of the two systems.
      batches: Number of batches that represent the images; T is drawn once for each.
    """

    weight_option: ClassVar[str] = "scale"

    scale: Positive = 1.0
    damping: Positive = 1e-3
    iterations: Count = 12
    batches: Count = 8

    def initial_weight(self, alpha: float) -> float:
        return self.scale

    def objective(self, model: Model) -> Objective:
        if getattr(model, "dtype", "float32") != "float32":
            model = model.replace(dtype="float32")  # the solver does not converge in lower precision

        def outputs(student, rows):
            return model.predict(student, rows["corrupted"])

        def losses(predicted, rows):
            return model.prediction_loss(predicted, rows["images"], rows["corrupted"])

        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return generative_objective(model, noisy_label_loss, one_shot=OneShot(outputs, losses, **options))
