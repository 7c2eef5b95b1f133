"""Other views: images that are masked or changed in another way might reveal what is hidden."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2l_jax.audit.attacks.base import Attack, Rate, Work, register
from l2l_jax.masks import MASKS, SIDES
from l2l_jax.models.base import Model

if TYPE_CHECKING:
    from l2l_jax.audit.bench import Bench

ROUNDS = 10
"""Steps of projected gradient descent."""


class View(NamedTuple):
    """A way to ask a model for a part of an image.

    Attributes:
      name: Short name.
      mask: What is missing, bool `[height, width]`.
      inpaint: `(model, params, images, mask, rng) -> reconstructions` of the images.
    """

    name: str
    mask: np.ndarray
    inpaint: Callable[..., jax.Array]


@register("views")
@dataclasses.dataclass(frozen=True)
class Views(Attack):
    """Mirror images, add noise, change visible pixels by gradient descent, mask other regions.

    Attributes:
      pixel_change: Greatest change of a visible pixel by gradient descent, and the standard deviation of
        noise, in 255ths of the range.
    """

    source = "projected gradient descent: Madry et al. 2018, arXiv 1706.06083"
    cost = "a reconstruction of the forget images for each view; twenty, with gradients, for descent"

    pixel_change: Rate = 8.0

    def variants(self, bench):
        """Return one variant for each view that the model can reconstruct."""
        return {name: f"view: {view.name}" for name, view in self._views(bench).items()}

    def work(self, bench):
        """Return the reconstructions; each round of descent takes one and a gradient."""
        return Work(bench.count("forget") * (len(self._views(bench)) + 4 * ROUNDS))

    def run(self, variant, bench, target, seed):
        """Reconstruct the forget images from a view and measure the results."""
        view = self._views(bench)[variant]

        def compute(params, image, rng):
            return view.inpaint(bench.model, params, image[None], view.mask, rng)[0]

        measured = bench.measure_images(
            target.params,
            bench.sets["forget"],
            "forget",
            f"{target.name}, {variant}",
            over=bench.runner(variant, compute).over,
            mask=None if view.mask is bench.mask else view.mask,
        )
        return {"0": {"forget": measured}}

    def _views(self, bench):
        possible = (v for v in views(bench.mask, self.pixel_change) if _is_possible(bench.model, v.mask))
        return bench.shared(self, lambda: {f"view_{view.name.replace(' ', '_')}": view for view in possible})


def views(mask: np.ndarray, pixel_change: float) -> Iterator[View]:
    """Yield changes of the visible pixels under the evaluation's mask, then other masks; see `Views`."""
    if (mask == mask[:, ::-1]).all():
        yield View("flip", mask, _flipped)
    yield View("noise", mask, _with_noise(pixel_change))
    yield View("gradient", mask, _with_gradient(pixel_change))
    for name, other in other_masks(mask).items():
        yield View(name, other, _plain)


def other_masks(mask: np.ndarray) -> dict[str, np.ndarray]:
    """Return masks of other regions by name: a smaller center, and the sides."""
    size, found = len(mask), {}
    for kind, width in {"centre": size // 4, **dict.fromkeys(SIDES, size // 2)}.items():
        with contextlib.suppress(ValueError):  # too small an image
            found[f"{kind} {width}"] = MASKS[kind](size, width)
    return {name: other for name, other in found.items() if not np.array_equal(other, mask)}


def possible_masks(bench: "Bench") -> list[np.ndarray]:
    """Return the evaluation's mask and those others that the model can reconstruct."""

    def make():
        others = (m for m in other_masks(bench.mask).values() if _is_possible(bench.model, m))
        return [bench.mask, *others]

    return bench.shared("possible masks", make)


def _plain(model, params, images, mask, rng):
    return model.inpaint(params, images, mask, rng)


def _flipped(model, params, images, mask, rng):
    return model.inpaint(params, images[:, :, ::-1], mask, rng)[:, :, ::-1]


def _with_noise(pixel_change):
    def inpaint(model, params, images, mask, rng):
        low, high = model.value_range
        noise = jax.random.normal(jax.random.fold_in(rng, 1), images.shape)
        noisy = images + noise * (high - low) * pixel_change / 255
        return model.inpaint(params, jnp.clip(noisy, low, high), mask, rng)

    return inpaint


def _with_gradient(pixel_change):
    """Descend the masked MSE, as an attacker who knows the truth.

    A change is kept, image by image, where it lowers the error. Where the gradient is 0, as everywhere in
    models that choose codes, the sign is drawn, which makes it a random search.
    """

    def inpaint(model, params, images, mask, rng):
        low, high = model.value_range
        reach = (high - low) * pixel_change / 255
        visible = ~mask[None, ..., None]

        def errors(changed):
            inpainted = model.inpaint(params, changed, mask, rng)
            return jnp.square((inpainted - images)[:, mask]).mean(axis=(1, 2))

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


def _is_possible(model: Model, mask: np.ndarray) -> bool:
    """Return whether the model can reconstruct this mask: a MAE needs a patch that it does not touch."""
    images = jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32)
    key = jax.random.key(0)
    try:
        jax.eval_shape(lambda params, x: model.inpaint(params, x, mask, key), model.shapes(), images)
    except ValueError:
        return False
    return True
