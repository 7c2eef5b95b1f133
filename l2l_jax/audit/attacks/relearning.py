"""Relearning from a few forget images: how many does it take?"""

import dataclasses

from l2l_jax.audit.attacks.base import Attack, Count, Rate, register
from l2l_jax.audit.trainings import Training, few_of_each_class, halvings, whole_model


@register("relearning")
@dataclasses.dataclass(frozen=True)
class Relearning(Attack):
    """Train the whole model on a few forget images.

    Attributes:
      shots: Numbers of forget images, chosen evenly over the classes; one training each.
      steps: Training steps; the model is measured after 1/4, 1/2 and all of them.
      batch_size: Images of a step.
      learning_rate: Constant rate of AdamW.
    """

    source = 'Hu et al. 2024, "Unlearning or Obfuscating?", arXiv 2406.13356'
    cost = "`steps` training steps for each number of images"
    is_curve = is_seeded = True

    shots: tuple[Count, ...] = (5, 25, 100)
    steps: Count = 50
    batch_size: Count = 64
    learning_rate: Rate = 1e-3

    def __post_init__(self):
        if len(set(self.shots)) < len(self.shots):
            raise ValueError(f"shots names a number twice: {self.shots}")

    def variants(self, bench):
        """Return one variant for each number of images."""
        return {f"relearning_{count}": f"{count} forget images, {self.steps} steps" for count in self.shots}

    def check(self, bench):
        """Raise a UserError if there are fewer forget images than the most shots."""
        few_of_each_class(bench.training.forget, max(self.shots, default=0), 0, "relearning.shots")

    def run(self, variant, bench, target, seed):
        """Train the model and measure it on the way."""
        count = int(variant.removeprefix("relearning_"))
        images = few_of_each_class(bench.training.forget, count, bench.seed(seed), "relearning.shots")
        training = Training(whole_model(bench.model), images, self.steps, self.batch_size, self.learning_rate)
        return bench.train(target, variant, training, halvings(self.steps, 3), seed)
