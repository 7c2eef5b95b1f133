"""Relearning from a few forget images."""

import dataclasses

from l2l_jax.audit.attacks.base import Count, Work, mean_points, register
from l2l_jax.audit.attacks.training import TrainingAttack, few_of_each_class, halvings

ENOUGH = 100
"""Total number of images after which no further sets of a given size are drawn."""


@register("relearning")
@dataclasses.dataclass(frozen=True)
class Relearning(TrainingAttack):
    """Fine-tuning of the whole model on a few forget images.

    The effect of a few images depends on the choice of images, so measurements are averaged over draws. Large
    sets vary less: once `ENOUGH` images have been drawn in total, no more sets are drawn.

    Attributes:
      shots: Numbers of forget images, chosen evenly over the classes.
      drawings: Maximum number of sets drawn for each number of images; one run each.
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
        """Return the number of sets drawn with `count` images each."""
        return max(1, min(self.drawings, ENOUGH // count))

    def training_images(self, variant, bench, seed, drawing=0):
        count = int(variant.removeprefix("relearning_"))
        return few_of_each_class(bench.training.forget, count, bench.seed(seed) + drawing, "relearning.shots")

    def run(self, variant, bench, target, seed):
        steps, runs = halvings(self.steps, self.measurements), []
        for drawing in range(self.drawn(int(variant.removeprefix("relearning_")))):
            training = self.training(bench.model, self.training_images(variant, bench, seed, drawing))
            name = f"{variant}_drawing_{drawing}" if drawing else variant
            runs.append(bench.train(target, name, training, steps, seed))
        return mean_points(runs)
