"""Relearning from a few forget images: how many does it take?"""

import dataclasses

from l2l_jax.audit.attacks.base import Count, Work, mean_points, register
from l2l_jax.audit.attacks.training import TrainingAttack, few_of_each_class, halvings

ENOUGH = 100
"""Images of a number of shots that all drawings together need not exceed."""


@register("relearning")
@dataclasses.dataclass(frozen=True)
class Relearning(TrainingAttack):
    """Train the whole model on a few forget images.

    How much a few images teach depends on which they are, so what is measured is the mean over drawings. The
    more they are, the less it does: after `ENOUGH` images in all, no others are drawn.

    Attributes:
      shots: Numbers of forget images, chosen evenly over the classes.
      drawings: How often each number of images is drawn, at most; one training each.
    """

    source = 'Hu et al. 2024, "Unlearning or Obfuscating?", arXiv 2406.13356'
    cost = "`drawings` times `steps` training steps for each number of images"
    measurements = 2

    steps: Count = 50
    shots: tuple[Count, ...] = (5, 25, 100)
    drawings: Count = 3

    def __post_init__(self):
        if len(set(self.shots)) < len(self.shots):
            raise ValueError(f"shots names a number twice: {self.shots}")

    def variants(self, bench):
        return {f"relearning_{count}": f"{count} forget images, {self.steps} steps" for count in self.shots}

    def check(self, bench):
        few_of_each_class(bench.training.forget, max(self.shots, default=0), 0, "relearning.shots")

    def work(self, bench):
        trainings = sum(map(self.drawn, self.shots)) / max(1, len(self.shots))
        return Work(*(trainings * images for images in super().work(bench)))

    def drawn(self, count: int) -> int:
        """Return how often a number of images is drawn."""
        return max(1, min(self.drawings, ENOUGH // count))

    def training_images(self, variant, bench, seed, drawing=0):
        count = int(variant.removeprefix("relearning_"))
        return few_of_each_class(bench.training.forget, count, bench.seed(seed) + drawing, "relearning.shots")

    def run(self, variant, bench, target, seed):
        steps, found = halvings(self.steps, self.measurements), []
        for drawing in range(self.drawn(int(variant.removeprefix("relearning_")))):
            training = self.training(bench.model, self.training_images(variant, bench, seed, drawing))
            name = f"{variant}_drawing_{drawing}" if drawing else variant
            found.append(bench.train(target, name, training, steps, seed))
        return mean_points(found)
