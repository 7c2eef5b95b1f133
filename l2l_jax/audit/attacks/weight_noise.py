"""Noise on the weights: does it disturb what hides the knowledge before the knowledge itself?"""

import dataclasses

import jax
import numpy as np

from l2l_jax.audit.attacks.base import Attack, Rate, register


@register("weight_noise")
@dataclasses.dataclass(frozen=True)
class WeightNoise(Attack):
    """Add Gaussian noise to every array of encoder and decoder.

    Attributes:
      levels: Standard deviations of the noise, in standard deviations of each array.
    """

    source = "arXiv 2605.11592"
    cost = "a reconstruction of the forget images for each level"
    is_curve = is_seeded = True

    levels: tuple[Rate, ...] = (0.01, 0.05, 0.1)

    def variants(self, bench):
        """Return the only variant."""
        return {"weight_noise": f"noise on the weights, {', '.join(f'{x:g}' for x in self.levels)}"}

    def run(self, variant, bench, target, seed):
        """Measure the model with each level of noise."""
        points = {}
        for level in self.levels:
            rng = np.random.default_rng(bench.seed(seed))

            def add(x, level=level, rng=rng):
                return (x + level * x.std() * rng.standard_normal(x.shape)).astype(x.dtype)

            changed = {part: jax.tree.map(add, target.params[part]) for part in ("encoder", "decoder")}
            title = f"{target.name}, {variant} {level:g}"
            points[f"{level:g}"] = bench.measure({**target.params, **changed}, title)
        return points
