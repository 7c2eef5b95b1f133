"""Relearning from a few forget images: how many does it take?"""

import dataclasses

from l2l_jax.audit.attacks.base import Count, register
from l2l_jax.audit.attacks.training import TrainingAttack, few_of_each_class


@register("relearning")
@dataclasses.dataclass(frozen=True)
class Relearning(TrainingAttack):
    """Train the whole model on a few forget images.

    Attributes:
      shots: Numbers of forget images, chosen evenly over the classes; one training each.
    """

    source = 'Hu et al. 2024, "Unlearning or Obfuscating?", arXiv 2406.13356'
    cost = "`steps` training steps for each number of images"
    measurements = 3

    steps: Count = 50
    shots: tuple[Count, ...] = (5, 25, 100)

    def __post_init__(self):
        if len(set(self.shots)) < len(self.shots):
            raise ValueError(f"shots names a number twice: {self.shots}")

    def variants(self, bench):
        return {f"relearning_{count}": f"{count} forget images, {self.steps} steps" for count in self.shots}

    def check(self, bench):
        few_of_each_class(bench.training.forget, max(self.shots, default=0), 0, "relearning.shots")

    def training_images(self, variant, bench, seed):
        count = int(variant.removeprefix("relearning_"))
        return few_of_each_class(bench.training.forget, count, bench.seed(seed), "relearning.shots")
