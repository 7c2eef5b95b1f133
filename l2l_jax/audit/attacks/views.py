"""Other views: images with other masks or perturbations, or another prompt, may reveal hidden knowledge."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from l2l_jax.audit.attacks.base import Attack, Rate, Work, register
from l2l_jax.masks import MASKS, SIDES

ROUNDS = 10  # steps of projected gradient descent


@register("views")
@dataclasses.dataclass(frozen=True)
class Views(Attack):
    """Flipped images, noise, visible pixels changed by gradient descent, other masks and other prompts.

    Attributes:
      pixel_change: Greatest change of a visible pixel by gradient descent, and the standard deviation of
        noise, in 255ths of the value range.
    """

    source = "projected gradient descent: Madry et al. 2018, arXiv 1706.06083"
    cost = "a reconstruction of the forget images for each view; twenty, with gradients, for descent"

    pixel_change: Rate = 8.0

    def variants(self, bench):
        return {_variant(name): f"view: {name}" for name in self._views(bench)}

    def work(self, bench):
        # Each round of descent takes a reconstruction and a gradient, which costs as much as three.
        return Work(bench.count("forget") * (len(self._views(bench)) + 4 * ROUNDS))

    def run(self, variant, bench, target, seed):
        mask, inpaint = {_variant(name): view for name, view in self._views(bench).items()}[variant]

        def compute(params, image, rng):
            return inpaint(params, image[None], mask, rng)[0]

        over, images = bench.runner((self, variant), compute).over, bench.sets["forget"]
        title, other = f"{target.name}, {variant}", None if mask is bench.mask else mask
        measured = bench.measure_images(target.params, images, "forget", title, over=over, mask=other)
        return {"0": {"forget": measured}}

    def _views(self, bench):
        """Return the mask and a function `(params, images, mask, rng) -> reconstructions` by view."""
        model = bench.model
        is_symmetric = (bench.mask == bench.mask[:, ::-1]).all()
        changes = {"flip": functools.partial(_flipped, model)} if is_symmetric else {}
        changes["noise"] = functools.partial(_with_noise, model, self.pixel_change)
        changes["gradient"] = functools.partial(_with_gradient, model, self.pixel_change)
        changes |= {name: other.inpaint for name, other in model.alternatives().items()}
        views = {name: (bench.mask, change) for name, change in changes.items()}
        others = {name: mask for name, mask in possible_masks(bench).items() if mask is not bench.mask}
        return views | {name: (mask, model.inpaint) for name, mask in others.items()}


def _variant(name):
    return f"view_{name.replace(' ', '_')}"


def possible_masks(bench):
    """Return masks that the model supports, by name: the evaluation's, a smaller center, the sides."""
    model, size = bench.model, len(bench.mask)
    images, key = jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32), jax.random.key(0)

    def make():
        masks = {"evaluation": bench.mask}
        for kind, width in {"centre": size // 4, **dict.fromkeys(SIDES, size // 2)}.items():
            with contextlib.suppress(ValueError):  # too small an image, or no patch of a MAE is fully visible
                mask = MASKS[kind](size, width)
                inpaint = functools.partial(model.inpaint, mask=mask, rng=key)
                jax.eval_shape(inpaint, model.shapes(), images)
                if not np.array_equal(mask, bench.mask):
                    masks[f"{kind} {width}"] = mask
        return masks

    return bench.shared("possible masks", make)


def _flipped(model, params, images, mask, rng):
    return model.inpaint(params, images[:, :, ::-1], mask, rng)[:, :, ::-1]


def _with_noise(model, pixel_change, params, images, mask, rng):
    low, high = model.value_range
    noise = jax.random.normal(jax.random.fold_in(rng, 1), images.shape)
    noisy = images + noise * (high - low) * pixel_change / 255
    return model.inpaint(params, jnp.clip(noisy, low, high), mask, rng)


def _with_gradient(model, pixel_change, params, images, mask, rng):
    """Minimize the masked MSE by projected gradient descent, as an attacker with the true image.

    For each image, a change is kept if it lowers the error. Where the gradient is 0, as everywhere in models
    that choose codes, the sign is drawn at random, which makes it a random search.
    """
    low, high = model.value_range
    reach = (high - low) * pixel_change / 255
    visible = ~mask[None, ..., None]

    def errors(changed):
        return jnp.square((model.inpaint(params, changed, mask, rng) - images)[:, mask]).mean(axis=(1, 2))

    def one_round(carry, key):
        best, least = carry
        slope = jax.grad(lambda changed: errors(changed).sum())(best)
        drawn = jax.random.rademacher(key, images.shape, images.dtype)
        tried = best + 2.5 * reach / ROUNDS * jnp.where(slope == 0, drawn, -jnp.sign(slope))
        tried = jnp.clip(jnp.clip(tried, images - reach, images + reach), low, high)
        tried = jnp.where(visible, tried, images)
        error = errors(tried)
        better = (error < least)[:, None, None, None]
        return (jnp.where(better, tried, best), jnp.minimum(error, least)), None

    keys = jax.random.split(jax.random.fold_in(rng, 2), ROUNDS)
    (best, _), _ = jax.lax.scan(one_round, (images, errors(images)), keys)
    return model.inpaint(params, best, mask, rng)
