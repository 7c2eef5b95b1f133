"""A model with one parameter, for which a budget can be computed by hand.

It reconstructs image x as w · x. Retain images favor w = 1, forget images w = 0. With equal brightness, the
minimum of (w − 1)² + α · w² is at w = 1 / (1 + α), where the error of a retain image is (1 − w)² · x².
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from l2l_jax.data.loader import LoaderOptions, TrainingBatches
from l2l_jax.losses import noisy_label_loss
from l2l_jax.methods.base import Objective

START = 0.9
"""w of the original model, whose retain error is 0.01 x²."""


class Gain:
    """The model, with the interface that `MaskedErrors` uses."""

    @staticmethod
    def inpaint(params, images, mask, rng):
        return params["encoder"]["gain"] * images


class Images(NamedTuple):
    """Ten images of equal brightness."""

    brightness: float
    class_names: tuple = ("only",)
    labels: np.ndarray = np.zeros(10, int)

    def __len__(self):
        return 10

    def __getitem__(self, index):
        image = np.full((4, 4, 3), self.brightness, np.float32)
        return {"image": image, "label": 0, "name": str(index)}


MASK = np.pad(np.ones((2, 2), bool), 1)


def params():
    """Return the original model; the decoder is unused."""
    return {"encoder": {"gain": np.float32(START)}, "decoder": {"unused": np.float32(0)}}


def objective(sign=1.0):
    """Return the objective: retain loss mean (w x − x)², forget loss sign · mean (w x)²."""

    def prepare(frozen, batch, rng, axis_name=None):
        retain, forget = batch["retain"], batch["forget"]
        return {"retain": {"x": retain, "truth": retain}, "forget": {"x": forget, "truth": 0 * forget}}

    def loss(trained, frozen, inputs, alpha):
        def losses(rows):
            errors = jnp.square(trained["encoder"]["gain"] * rows["x"] - rows["truth"])
            return errors.mean(axis=(1, 2, 3))

        retain, forget = losses(inputs["retain"]), losses(inputs["forget"])
        return noisy_label_loss(retain, sign * forget, alpha=sign * alpha)

    return Objective(("encoder",), (), prepare, loss)


def batches(size=8, **options):
    sets = {"retain": Images(1.0), "forget": Images(1.0)}
    return TrainingBatches(sets, size, value_range=(0, 1), seed=0, options=LoaderOptions(**options))


def validation():
    return {"retain": np.ones((3, 4, 4, 3), np.float32), "forget": np.full((2, 4, 4, 3), 0.5, np.float32)}
