"""Fine-tuning on retain images: does the forgotten come back unasked?"""

import dataclasses

from l2l_jax.audit.attacks.base import Attack, Count, Rate, register
from l2l_jax.audit.trainings import Training, halvings, whole_model


@register("retain_tuning")
@dataclasses.dataclass(frozen=True)
class RetainTuning(Attack):
    """Train the whole model on retain images alone, without one forget image.

    Attributes:
      steps: Training steps; the model is measured after 1/16, 1/8, 1/4, 1/2 and all of them.
      batch_size: Images of a step.
      learning_rate: Constant rate of AdamW.
    """

    source = 'arXiv 2505.22310, "Unlearning\'s Blind Spots"'
    cost = "`steps` training steps"
    is_curve = is_seeded = True

    steps: Count = 400
    batch_size: Count = 64
    learning_rate: Rate = 2e-3

    def variants(self, bench):
        """Return the only variant."""
        return {"retain_tuning": f"retain images only, {self.steps} steps"}

    def run(self, variant, bench, target, seed):
        """Train the model and measure it on the way."""
        images = bench.training.retain
        training = Training(whole_model(bench.model), images, self.steps, self.batch_size, self.learning_rate)
        return bench.train(target, variant, training, halvings(self.steps, 5), seed)
