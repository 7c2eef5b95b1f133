"""Fine-tuning on retain images: does the forgotten come back unasked?"""

import dataclasses

from l2l_jax.audit.attacks.base import Rate, register
from l2l_jax.audit.attacks.training import TrainingAttack


@register("retain_tuning")
@dataclasses.dataclass(frozen=True)
class RetainTuning(TrainingAttack):
    """Train the whole model on retain images alone, without one forget image."""

    title = "retain images only, {steps} steps"
    source = 'arXiv 2505.22310, "Unlearning\'s Blind Spots"'

    learning_rate: Rate = 2e-3

    def training_images(self, variant, bench, seed):
        return bench.training.retain
