"""Residual knowledge: recognition of slightly perturbed images, relative to the retrained model."""

import dataclasses

import jax
import jax.numpy as jnp

from l2l_jax.audit.attacks.base import Attack, Count, Rate, Work, mean_points, register


@register("residual_knowledge")
@dataclasses.dataclass(frozen=True)
class ResidualKnowledge(Attack):
    """Reconstruction of forget images with small random perturbations of their visible pixels.

    Residual knowledge is the number of correct reconstructions relative to that of the retrained model. Above
    1, the model knows more about the neighborhood of an image than a model that was not trained on it.

    Attributes:
      changes: Number of random perturbations of each image.
      pixel_change: Standard deviation of a perturbation, in 255ths of the value range.
    """

    title = "residual knowledge, {changes} changes of each image"
    source = 'arXiv 2601.22359, "residual knowledge"'
    cost = "`changes` reconstructions of the forget images"

    changes: Count = 8
    pixel_change: Rate = 8.0

    def why_not(self, bench):
        return "" if bench.evaluation.has_classifier else "config.evaluate.features=none leaves no classifier"

    def work(self, bench):
        return Work(bench.count("forget") * self.changes)

    def run(self, variant, bench, target, seed):

        def compute(params, image, rng):
            noise_key, inpaint_key = jax.random.split(rng)
            low, high = bench.model.value_range
            noise = jax.random.normal(noise_key, image.shape) * (high - low) * self.pixel_change / 255
            changed = jnp.clip(image + noise, low, high)[None]
            return bench.model.inpaint(params, changed, bench.mask, inpaint_key)[0]

        over, images = bench.runner(self, compute).over, bench.sets["forget"]
        title = f"{target.name}, {variant}"
        names = [f"forget {number}" for number in range(self.changes)]
        runs = [bench.measure_images(target.params, images, name, title, over=over) for name in names]
        return mean_points([{"0": {"forget": run}} for run in runs])
