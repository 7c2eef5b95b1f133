"""Gradient ascent on forget images."""

import dataclasses
import functools

from l2l_jax import losses
from l2l_jax.methods.base import Method, Objective, register, unlearning_objective
from l2l_jax.methods.inputs import corrupt_images, generative_losses
from l2l_jax.models.base import Model


@register("max_loss")
@dataclasses.dataclass(frozen=True)
class MaxLoss(Method):
    """Raise the model's own training loss on forget images.

    Encoder and decoder are trained. The loss has no lower bound: with a large alpha or many steps it
    diverges, which clipping the gradient delays.
    """

    def objective(self, model: Model) -> Objective:
        """Return the retain loss minus `alpha` times the forget loss."""

        def loss(trained, frozen, inputs, alpha):
            pair = generative_losses(model, {**frozen, **trained}, inputs)
            return losses.max_loss(*pair, alpha=alpha)

        return unlearning_objective(
            model, model.generative_parts, functools.partial(corrupt_images, model), loss
        )
