"""Other views: images masked or changed in another way, or another prompt, might reveal what is hidden."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from l2l_jax.audit.attacks.base import Attack, Rate, Work, register
from l2l_jax.masks import MASKS, SIDES

ROUNDS = 10
"""Steps of projected gradient descent."""


@register("views")
@dataclasses.dataclass(frozen=True)
class Views(Attack):
    """Mirror images, add noise, change visible pixels by gradient descent, mask other regions, prompt anew.

    Attributes:
      pixel_change: Greatest change of a visible pixel by gradient descent, and the standard deviation of
        noise, in 255ths of the range.
    """

    source = "projected gradient descent: Madry et al. 2018, arXiv 1706.06083"
    cost = "a reconstruction of the forget images for each view; twenty, with gradients, for descent"

    pixel_change: Rate = 8.0

    def variants(self, bench):
        """Return one variant for each view that the model can reconstruct."""
        return {_variant(name): f"view: {name}" for name in self._views(bench)}

    def work(self, bench):
        """Return the reconstructions; each round of descent takes one and a gradient."""
        return Work(bench.count("forget") * (len(self._views(bench)) + 4 * ROUNDS))

    def run(self, variant, bench, target, seed):
        """Reconstruct the forget images from a view and measure the results."""
        mask, inpaint = {_variant(name): view for name, view in self._views(bench).items()}[variant]

        def compute(params, image, rng):
            return inpaint(bench.model, params, image[None], mask, rng)[0]

        measured = bench.measure_images(
            target.params,
            bench.sets["forget"],
            "forget",
            f"{target.name}, {variant}",
            over=bench.runner((self, variant), compute).over,
            mask=None if mask is bench.mask else mask,
        )
        return {"0": {"forget": measured}}

    def _views(self, bench):
        """Return mask and function of each view by name."""
        masks = possible_masks(bench)
        changes = {"noise": _with_noise(self.pixel_change), "gradient": _with_gradient(self.pixel_change)}
        if (bench.mask == bench.mask[:, ::-1]).all():
            changes = {"flip": _flipped, **changes}
        changes |= {name: _as(other) for name, other in bench.model.alternatives().items()}
        found = {name: (bench.mask, change) for name, change in changes.items()}
        return found | {name: (mask, _plain) for name, mask in masks.items() if mask is not bench.mask}


def _variant(name):
    return f"view_{name.replace(' ', '_')}"


def possible_masks(bench):
    """Return masks that the model can reconstruct, by name: the evaluation's, a smaller center, the sides."""

    def make():
        size, found = len(bench.mask), {"evaluation": bench.mask}
        for kind, width in {"centre": size // 4, **dict.fromkeys(SIDES, size // 2)}.items():
            with contextlib.suppress(ValueError):  # too small an image, or every patch of a MAE is touched
                mask = MASKS[kind](size, width)
                _try_inpaint(bench.model, mask)
                if not np.array_equal(mask, bench.mask):
                    found[f"{kind} {width}"] = mask
        return found

    return bench.shared("possible masks", make)


def _try_inpaint(model, mask):
    images, key = jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32), jax.random.key(0)
    jax.eval_shape(lambda params, x: model.inpaint(params, x, mask, key), model.shapes(), images)


def _plain(model, params, images, mask, rng):
    return model.inpaint(params, images, mask, rng)


def _as(other):
    return lambda model, params, images, mask, rng: other.inpaint(params, images, mask, rng)


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
