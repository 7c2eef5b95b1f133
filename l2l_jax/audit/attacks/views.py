"""Other views: images that are cut or changed otherwise than in the evaluation might wake what is hidden."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2l_jax.audit.measuring import Points
from l2l_jax.evals import metrics
from l2l_jax.evals.image_set import ImageSet
from l2l_jax.evals.runner import BatchedRunner, per_image
from l2l_jax.masks import MASKS, SIDES
from l2l_jax.models.base import Model, Params

ROUNDS = 10
"""Steps of projected gradient descent."""

Inpaint = Callable[[Model, Params, jax.Array, np.ndarray, jax.Array], jax.Array]
"""`(model, params, images, mask, rng) -> restorations`, both as the images lie."""


class View(NamedTuple):
    """One way to ask a model for a part of an image.

    Attributes:
      name: of the view.
      mask: what is missing, bool `[height, width]`.
      inpaint: how it is restored.
    """

    name: str
    mask: np.ndarray
    inpaint: Inpaint


def views(mask: np.ndarray, pixel_change: float) -> Iterator[View]:
    """Changes of the visible pixels under the evaluation's own mask, then other masks.

    Args:
      mask: of the evaluation.
      pixel_change: the greatest change of a visible pixel, in 255ths of the range; of "noise" the standard
        deviation.
    """
    if (mask == mask[:, ::-1]).all():
        yield View("flip", mask, _flipped)
    yield View("noise", mask, _with_noise(pixel_change))
    yield View("gradient", mask, _with_gradient(pixel_change))
    size = len(mask)
    others = {"centre": size // 4, **dict.fromkeys(SIDES, size // 2)}
    for kind, width in others.items():
        try:
            other = MASKS[kind](size, width)
        except ValueError:  # too small an image
            continue
        if not np.array_equal(other, mask):
            yield View(f"{kind} {width}", other, _plain)


def _plain(model, params, images, mask, rng):
    return model.inpaint(params, images, mask, rng)


def _flipped(model, params, images, mask, rng):
    return model.inpaint(params, images[:, :, ::-1], mask, rng)[:, :, ::-1]


def _with_noise(pixel_change: float) -> Inpaint:
    def inpaint(model, params, images, mask, rng):
        low, high = model.value_range
        noise = (
            jax.random.normal(jax.random.fold_in(rng, 1), images.shape) * (high - low) * pixel_change / 255
        )
        return model.inpaint(params, jnp.clip(images + noise, low, high), mask, rng)

    return inpaint


def _with_gradient(pixel_change: float) -> Inpaint:
    """Projected gradient descent on the mask error (Madry et al. 2018), by an attacker who knows the truth.

    A change is kept, image by image, where it lowers the error. Where the gradient is 0, as everywhere in
    models that choose codes, the sign is drawn: then this is a random search.
    """

    def inpaint(model, params, images, mask, rng):
        low, high = model.value_range
        reach = (high - low) * pixel_change / 255
        visible = ~mask[None, ..., None]

        def errors(changed):
            restored = model.inpaint(params, changed, mask, rng)
            return jnp.square((restored - images)[:, mask]).mean(axis=(1, 2))

        def one_round(carry, key):
            best, least = carry
            slope = jax.grad(lambda changed: errors(changed).sum())(best)
            drawn = jax.random.rademacher(key, images.shape, images.dtype)
            tried = best + 2.5 * reach / ROUNDS * jnp.where(slope == 0, drawn, -jnp.sign(slope))
            tried = jnp.clip(jnp.clip(tried, images - reach, images + reach), low, high)
            tried = jnp.where(visible, tried, images)
            found = errors(tried)
            better = (found < least)[:, None, None, None]
            return (jnp.where(better, tried, best), jnp.minimum(found, least)), None

        keys = jax.random.split(jax.random.fold_in(rng, 2), ROUNDS)
        (best, _), _ = jax.lax.scan(one_round, (images, errors(images)), keys)
        return model.inpaint(params, best, mask, rng)

    return inpaint


class Viewer:
    """Looks at models through all views, each compiled once.

    Args:
      model: the model.
      mask: of the evaluation.
      pixel_change: see `views`.
      batch_size: images per compiled call.
      seed: of what is drawn.
    """

    def __init__(self, model: Model, mask: np.ndarray, pixel_change: float, *, batch_size: int, seed: int):
        self.mask = mask
        self._views = [
            (view, BatchedRunner(per_image(self._compute(model, view), seed), batch_size))
            for view in views(mask, pixel_change)
            if _possible(model, view)
        ]

    @staticmethod
    def _compute(model: Model, view: View) -> Callable:
        return lambda params, image, rng: view.inpaint(model, params, image[None], view.mask, rng)[0]

    def __call__(
        self, params: Params, images: ImageSet, right: Callable[[np.ndarray, np.ndarray], np.ndarray | None]
    ) -> Points:
        """What each view shows of the forget images.

        Cost: a restoration of each image and view, and for "gradient" ten with their gradients.

        Args:
          params: the model.
          images: forget images.
          right: whether the class is read rightly from restorations of the evaluation's mask; or None.
        """
        points: Points = {}
        for view, compute in self._views:
            blocks = []
            for good, restored in compute.over(params, images, "forget"):
                measured = {"mse": metrics.masked_mse(good.images, restored, view.mask)}
                read = right(restored, good.labels) if view.mask is self.mask else None
                blocks.append(measured if read is None else {**measured, "right": read})
            points[view.name] = {"forget": {n: np.concatenate([b[n] for b in blocks]) for n in blocks[0]}}
        return points


def _possible(model: Model, view: View) -> bool:
    """Whether the model can restore this mask at all: a MAE needs a patch that it does not touch."""
    images = jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32)
    shapes = model.shapes()
    try:
        jax.eval_shape(
            lambda params, images: model.inpaint(params, images, view.mask, jax.random.key(0)), shapes, images
        )
    except ValueError:
        return False
    return True
