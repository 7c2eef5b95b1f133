"""A model with known memory: it reconstructs exactly the images that it was given."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from l2l_jax.models.base import Model
from tests.fixtures.configs import digits_config


@dataclasses.dataclass(frozen=True)
class Memory(Model):
    """A model that fills a mask from the image in {"encoder": images} with the nearest visible pixels."""

    image_size: int = 16
    channels: int = 3
    value_range: tuple[float, float] = (0.0, 1.0)

    def init(self, rng):
        return {"encoder": jnp.zeros((1, *self.image_shape))}

    def corrupt(self, params, images, rng, axis_name=None):
        return images

    def encode(self, encoder_params, corrupted):
        return corrupted

    def predict(self, params, corrupted):
        return corrupted

    def prediction_loss(self, predicted, images, corrupted):
        return jnp.zeros(len(images))

    def imitation_loss(self, predicted, corrupted, target):
        return jnp.zeros(len(corrupted))

    def with_truth(self, params, images, corrupted, truth):
        return truth, corrupted

    def inpaint(self, params, images, mask, rng):
        memory = params["encoder"]
        visible, remembered = (x[:, ~mask].reshape(len(x), -1) for x in (images, memory))
        far = jnp.square(remembered).sum(1)[None] - 2 * visible @ remembered.T
        return jnp.where(mask[None, ..., None], memory[far.argmin(1)], images)


def remembering(source, indices=None):
    """Return parameters that remember some or all images of a source."""
    indices = range(len(source)) if indices is None else indices
    return {"encoder": np.stack([source[int(i)]["image"] for i in indices])}


def config(**audit):
    return digits_config({f"audit.{name}": value for name, value in audit.items()})
