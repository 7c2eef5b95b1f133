"""Retain images as the truth of forget images."""

import dataclasses

from l2l_jax.losses import retain_label_loss
from l2l_jax.methods.base import Method, Objective, register, unlearning_objective
from l2l_jax.methods.inputs import corrupt_images
from l2l_jax.models.base import Model
from l2l_jax.utils.batch_axis import deinterleave, interleave


@register("retain_label")
@dataclasses.dataclass(frozen=True)
class RetainLabel(Method):
    """Train forget images towards the original model's outputs on retain images.

    Encoder and decoder are trained. Forget image i is paired with retain image i of the batch. The release
    for MAGE weights both terms by the mask of the retain images, so that forget images never count, and its
    outputs include the logits of the class token and of unused words; neither is copied.
    """

    def objective(self, model: Model) -> Objective:
        """Return the model's own loss, with outputs on retain images as the truth of forget images."""

        def prepare(frozen, batch, rng, axis_name=None):
            views = corrupt_images(model, frozen, batch, rng, axis_name)
            return {of: view["corrupted"] for of, view in views.items()}

        def loss(trained, frozen, inputs, alpha):
            rows = interleave(inputs["retain"], inputs["forget"])
            retain, forget = deinterleave(model.predict({**frozen, **trained}, rows))
            teacher = model.predict(frozen, inputs["retain"])
            return retain_label_loss(retain, teacher, forget, alpha=alpha)

        return unlearning_objective(
            model, model.generative_parts, prepare, loss, teacher=model.generative_parts
        )
