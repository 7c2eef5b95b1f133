"""Patient relearning: a few forget images, mixed with retain images against collapse."""

import dataclasses

from l2l_jax.audit.attacks.base import Attack, Count, Rate, register
from l2l_jax.audit.trainings import Training, few_of_each_class, halvings, whole_model
from l2l_jax.data.records import Mixture


@register("patient_relearning")
@dataclasses.dataclass(frozen=True)
class PatientRelearning(Attack):
    """Train the whole model on a few forget images mixed with as many draws of retain images.

    Retain images keep the model from overfitting, so that the attacker can train for long.

    Attributes:
      shots: Number of forget images.
      steps: Training steps; the model is measured after 1/16, 1/8, 1/4, 1/2 and all of them.
      batch_size: Images of a step, half of them forget images.
      learning_rate: Constant rate of AdamW.
    """

    source = "a longer form of relearning (arXiv 2406.13356)"
    cost = "`steps` training steps"
    is_curve = is_seeded = True

    shots: Count = 25
    steps: Count = 300
    batch_size: Count = 64
    learning_rate: Rate = 1e-3

    def variants(self, bench):
        """Return the only variant."""
        return {"patient_relearning": f"{self.shots} forget images among retain images, {self.steps} steps"}

    def check(self, bench):
        """Raise a UserError if there are fewer than `shots` forget images."""
        few_of_each_class(bench.training.forget, self.shots, 0, "patient_relearning.shots")

    def run(self, variant, bench, target, seed):
        """Train the model and measure it on the way."""
        few = few_of_each_class(
            bench.training.forget, self.shots, bench.seed(seed), "patient_relearning.shots"
        )
        images = Mixture({"retain": bench.training.retain, "forget": few}, [1.0, 1.0])
        training = Training(whole_model(bench.model), images, self.steps, self.batch_size, self.learning_rate)
        return bench.train(target, variant, training, halvings(self.steps, 5), seed)
