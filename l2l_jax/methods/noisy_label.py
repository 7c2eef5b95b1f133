"""Noise as the truth of forget images."""

import dataclasses

from l2l_jax.losses import noisy_label_loss
from l2l_jax.methods.base import Method, Objective, register, unlearning_objective
from l2l_jax.methods.inputs import corrupt_images, generative_losses
from l2l_jax.methods.targets import forget_truth
from l2l_jax.models.base import Model


@register("noisy_label")
@dataclasses.dataclass(frozen=True)
class NoisyLabel(Method):
    """Train forget images towards Gaussian noise.

    Encoder and decoder are trained. `Model.noisy_truth` defines what noise is to a family: a noise image
    (MAE), noise codes (MAGE) or pure noise inside the mask (Palette), with the statistics of retain and
    forget images together.
    """

    def objective(self, model: Model) -> Objective:
        """Return the model's own loss, with noise as the truth of forget images."""

        def prepare(frozen, batch, rng, axis_name=None):
            views = corrupt_images(model, frozen, batch, rng, axis_name)
            return {**views, "forget": forget_truth(model, frozen, views, rng, "noise", axis_name)}

        def loss(trained, frozen, inputs, alpha):
            pair = generative_losses(model, {**frozen, **trained}, inputs)
            return noisy_label_loss(*pair, alpha=alpha)

        return unlearning_objective(model, model.generative_parts, prepare, loss)
