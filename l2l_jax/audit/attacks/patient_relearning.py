"""Patient relearning: a few forget images, mixed with retain images against collapse."""

import dataclasses

from l2l_jax.audit.attacks.base import Count, register
from l2l_jax.audit.attacks.training import TrainingAttack, few_of_each_class
from l2l_jax.data.records import Mixture


@register("patient_relearning")
@dataclasses.dataclass(frozen=True)
class PatientRelearning(TrainingAttack):
    """Train the whole model on a few forget images mixed with as many draws of retain images.

    Retain images keep the model from overfitting, so that the attacker can train for long.

    Attributes:
      shots: Number of forget images.
    """

    title = "{shots} forget images among retain images, {steps} steps"
    source = "a longer form of relearning (arXiv 2406.13356)"

    steps: Count = 300
    shots: Count = 25

    def check(self, bench):
        """Raise a UserError if there are fewer than `shots` forget images."""
        self._few(bench, 0)

    def training_images(self, variant, bench, seed):
        """Return the mixture."""
        few = self._few(bench, bench.seed(seed))
        return Mixture({"retain": bench.training.retain, "forget": few}, [1.0, 1.0])

    def _few(self, bench, seed):
        return few_of_each_class(bench.training.forget, self.shots, seed, "patient_relearning.shots")
