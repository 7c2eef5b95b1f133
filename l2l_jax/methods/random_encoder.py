"""Gaussian noise in place of the features of forget images."""

import dataclasses

import jax

from l2l_jax.losses import noise_features, random_encoder_loss
from l2l_jax.methods.base import Method, Objective, register, unlearning_objective
from l2l_jax.methods.inputs import corrupt_images
from l2l_jax.models.base import Model
from l2l_jax.utils.batch_axis import deinterleave, interleave


@register("random_encoder")
@dataclasses.dataclass(frozen=True)
class RandomEncoder(Method):
    """Send the encoder's features of forget images to Gaussian noise.

    The encoder is trained. The noise has the statistics of the original features of retain and forget
    images, as in the release for MAGE; in the release for Palette the original encoder sees noise inside the
    mask of forget images. The release for MAGE weights both terms by the mask of the retain images, so that
    forget images never count; this is not copied.
    """

    def objective(self, model: Model) -> Objective:
        """Return the feature loss, with noise as the target of forget images."""

        def prepare(frozen, batch, rng, axis_name=None):
            views = corrupt_images(model, frozen, batch, rng, axis_name)
            retain, forget = views["retain"]["corrupted"], views["forget"]["corrupted"]
            # Not in the loss: the statistics are those of the whole batch.
            features = model.encode(frozen["encoder"], interleave(retain, forget))
            noise = noise_features(features, jax.random.fold_in(rng, 2), axis_name)
            return {
                "retain": retain,
                "forget": forget,
                "teacher": deinterleave(features)[0],
                "noise": deinterleave(noise)[1],
            }

        def loss(trained, frozen, inputs, alpha):
            rows = interleave(inputs["retain"], inputs["forget"])
            retain, forget = deinterleave(model.encode(trained["encoder"], rows))
            return random_encoder_loss(retain, inputs["teacher"], forget, inputs["noise"], alpha=alpha)

        return unlearning_objective(model, ("encoder",), prepare, loss, teacher=("encoder",))
