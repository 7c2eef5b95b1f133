"""Noise on the weights, which may remove what hides the knowledge before the knowledge itself."""

import dataclasses

import jax
import numpy as np

from l2l_jax.audit.attacks.base import Count, Rate, Work, register
from l2l_jax.audit.attacks.training import TrainingAttack


@register("weight_noise")
@dataclasses.dataclass(frozen=True)
class WeightNoise(TrainingAttack):
    """Gaussian noise on every array of encoder and decoder, then fine-tuning on retain images only.

    Attributes:
      levels: Standard deviations of the noise, in standard deviations of each array; the greatest is used for
        fine-tuning.
    """

    source = "arXiv 2605.11592"
    cost = "a reconstruction of the forget images for each level, and `steps` training steps"
    measurements = 3

    steps: Count = 200
    learning_rate: Rate = 2e-3
    levels: tuple[Rate, ...] = (0.01, 0.05, 0.1)

    def variants(self, bench):
        return {
            "weight_noise": f"noise on the weights, {', '.join(f'{x:g}' for x in self.levels)}",
            "weight_noise_tuning": f"noise {max(self.levels):g}, then retain images, {self.steps} steps",
        }

    def work(self, bench):
        return Work(
            bench.count("validation", "forget") * (len(self.levels) + 3), self.steps * self.batch_size
        )

    def training_images(self, variant, bench, seed):
        return bench.training.retain

    def run(self, variant, bench, target, seed):
        number = bench.seed(seed)
        if variant == "weight_noise_tuning":
            noisy = target._replace(params=add_noise(target.params, max(self.levels), number))
            return super().run(variant, bench, noisy, seed)
        return {
            f"{level:g}": bench.measure(
                add_noise(target.params, level, number), f"{target.name}, {variant} {level:g}"
            )
            for level in self.levels
        }


def add_noise(params, level, seed):
    """Add noise of `level` standard deviations to each array of encoder and decoder."""
    rng = np.random.default_rng(seed)

    def add(x):
        return (x + level * x.std() * rng.standard_normal(x.shape)).astype(x.dtype)

    return {**params, **{part: jax.tree.map(add, params[part]) for part in ("encoder", "decoder")}}
