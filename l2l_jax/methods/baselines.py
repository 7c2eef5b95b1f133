"""The paper's four baselines."""

import dataclasses

import jax

from l2l_jax import losses
from l2l_jax.methods.base import Method, Objective, register, unlearning_objective
from l2l_jax.methods.inputs import corrupt_images, generative_objective
from l2l_jax.models.base import Model
from l2l_jax.utils.batch_axis import deinterleave, interleave


@register("max_loss")
@dataclasses.dataclass(frozen=True)
class MaxLoss(Method):
    """Gradient ascent on the model's own training loss of forget images.

    Encoder and decoder are trained. The loss has no lower bound: with a large alpha or many steps it
    diverges, which clipping the gradient delays.
    """

    def objective(self, model: Model) -> Objective:
        return generative_objective(model, losses.max_loss)


@register("noisy_label")
@dataclasses.dataclass(frozen=True)
class NoisyLabel(Method):
    """Training of forget images toward Gaussian noise.

    Encoder and decoder are trained. `Model.noisy_truth` defines the noise of a family: a noise image (MAE),
    noise codes (MAGE) or pure noise inside the mask (Palette), with the joint statistics of retain and forget
    images.
    """

    def objective(self, model: Model) -> Objective:
        return generative_objective(model, losses.noisy_label_loss, "noise")


@register("retain_label")
@dataclasses.dataclass(frozen=True)
class RetainLabel(Method):
    """Training of forget images toward the original model's outputs on retain images.

    Encoder and decoder are trained. Forget image i is paired with retain image i of the batch. The release
    for MAGE weights both terms by the mask of the retain images, which removes forget images from the loss,
    and its outputs include the logits of the class token and of unused words; neither is reproduced here.
    """

    def objective(self, model: Model) -> Objective:
        def prepare(frozen, batch, rng, axis_name=None):
            views = corrupt_images(model, frozen, batch, rng, axis_name)
            return {name: view["corrupted"] for name, view in views.items()}

        def loss(trained, frozen, inputs, alpha):
            rows = interleave(inputs["retain"], inputs["forget"])
            retain, forget = deinterleave(model.predict({**frozen, **trained}, rows))
            teacher = model.predict(frozen, inputs["retain"])
            return losses.retain_label_loss(retain, teacher, forget, alpha=alpha)

        parts = model.generative_parts
        return unlearning_objective(model, parts, prepare, loss, teacher=parts)


@register("random_encoder")
@dataclasses.dataclass(frozen=True)
class RandomEncoder(Method):
    """Training of the encoder's features of forget images toward Gaussian noise.

    The encoder is trained. The noise has the statistics of the original features of retain and forget
    images, as in the release for MAGE; in the release for Palette, the inputs of the original encoder have
    noise inside the mask of forget images. The release for MAGE weights both terms by the mask of the retain
    images, which removes forget images from the loss; this is not reproduced here.
    """

    def objective(self, model: Model) -> Objective:
        def prepare(frozen, batch, rng, axis_name=None):
            views = corrupt_images(model, frozen, batch, rng, axis_name)
            inputs = {name: view["corrupted"] for name, view in views.items()}
            # Computed here and not in the loss, because the statistics are those of the whole batch.
            features = model.encode(frozen["encoder"], interleave(inputs["retain"], inputs["forget"]))
            noise = losses.noise_features(features, jax.random.fold_in(rng, 2), axis_name)
            return inputs | {"teacher": deinterleave(features)[0], "noise": deinterleave(noise)[1]}

        def loss(trained, frozen, inputs, alpha):
            rows = interleave(inputs["retain"], inputs["forget"])
            retain, forget = deinterleave(model.encode(trained["encoder"], rows))
            return losses.random_encoder_loss(retain, inputs["teacher"], forget, inputs["noise"], alpha=alpha)

        return unlearning_objective(model, ("encoder",), prepare, loss, teacher=("encoder",))
