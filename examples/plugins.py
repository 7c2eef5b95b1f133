"""A custom method, model family and attack in one module outside the package.

    python -m l2l_jax.main --config=configs/digits_mae.py --config.plugins=examples.plugins \
        --config.unlearn.method=gray --config.unlearn.gray.level=0.5 --config.unlearn.retain_budget=0

Each is a frozen dataclass; its fields are its options, and the first line of its docstring is its help text.
"""

import dataclasses

import jax
import jax.numpy as jnp

from l2l_jax.audit.attacks.base import Attack
from l2l_jax.audit.attacks.base import register as register_attack
from l2l_jax.losses import noisy_label_loss
from l2l_jax.methods.base import Method, Objective
from l2l_jax.methods.base import register as register_method
from l2l_jax.methods.inputs import corrupt_images, generative_losses
from l2l_jax.models.base import Model
from l2l_jax.models.base import register as register_family


@register_method("gray")
@dataclasses.dataclass(frozen=True)
class Gray(Method):
    """Train forget images towards one gray level.

    Attributes:
      level: Gray level, from 0 (black) to 1 (white).
    """

    level: float = 0.5

    def objective(self, model: Model) -> Objective:
        """Return the objective of a training step."""

        def prepare(frozen, batch, rng, axis_name=None):
            low, high = model.value_range
            views = corrupt_images(model, frozen, batch, rng, axis_name)
            images, corrupted = views["forget"]["images"], views["forget"]["corrupted"]
            gray = jnp.full_like(images, low + self.level * (high - low))
            images, corrupted = model.with_truth(frozen, images, corrupted, gray)
            return {**views, "forget": {"images": images, "corrupted": corrupted}}

        def loss(trained, frozen, inputs, alpha):
            retain, forget = generative_losses(model, {**frozen, **trained}, inputs)
            return noisy_label_loss(retain, forget, alpha=alpha)

        return Objective(model.generative_parts, model.corruption_parts, prepare, loss)


@register_attack("brighten")
@dataclasses.dataclass(frozen=True)
class Brighten(Attack):
    """Scale the decoder's weights.

    Attributes:
      factors: Factors to try; the attacker keeps the best point.
    """

    source = "an example"
    cost = "a reconstruction of the forget images for each factor"
    title = "scaled decoder"
    is_curve = True

    factors: tuple[float, ...] = (0.9, 1.1)

    def run(self, variant, bench, target, seed):
        """Return measurements for each factor."""
        points = {}
        for factor in self.factors:
            decoder = jax.tree.map(lambda x, factor=factor: x * factor, target.params["decoder"])
            points[f"{factor:g}"] = bench.measure({**target.params, "decoder": decoder}, f"factor {factor:g}")
        return points


@register_family("blur")
@dataclasses.dataclass(frozen=True)
class Blur(Model):
    """A model that fills the masked region with one learned color per image feature.

    Attributes:
      image_size: Side in pixels.
      width: Number of features.
    """

    image_size: int = 16
    width: int = 8
    channels: int = 3
    value_range: tuple[float, float] = (0.0, 1.0)

    def init(self, rng):
        """Return fresh parameters."""
        keys = jax.random.split(rng)
        return {
            "encoder": {"kernel": jax.random.normal(keys[0], (self.channels, self.width))},
            "decoder": {"kernel": jax.random.normal(keys[1], (self.width, self.channels)) / self.width},
        }

    def corrupt(self, params, images, rng, axis_name=None):
        """Return the mean color of each image's left half."""
        return images[:, :, : self.image_size // 2].mean(axis=(1, 2))

    def encode(self, encoder_params, corrupted):
        """Return features `[batch, width]`."""
        return jnp.tanh(corrupted @ encoder_params["kernel"])

    def predict(self, params, corrupted):
        """Return the predicted color `[batch, channel]`."""
        return self.encode(params["encoder"], corrupted) @ params["decoder"]["kernel"]

    def prediction_loss(self, predicted, images, corrupted):
        """Return the squared error to the mean color of the right half, `[batch]`."""
        truth = images[:, :, self.image_size // 2 :].mean(axis=(1, 2))
        return jnp.square(predicted - truth).mean(axis=-1)

    def imitation_loss(self, predicted, corrupted, target):
        """Return the squared error to another model's prediction, `[batch]`."""
        return jnp.square(predicted - target).mean(axis=-1)

    def with_truth(self, params, images, corrupted, truth):
        """Return the inputs with other images as the target."""
        return truth, corrupted

    def inpaint(self, params, images, mask, rng):
        """Return images whose masked region has the predicted color."""
        visible = jnp.asarray(~mask)[None, :, :, None]
        mean = (images * visible).sum(axis=(1, 2)) / visible.sum()
        color = self.predict(params, mean)[:, None, None]
        return jnp.where(visible, images, color)
