"""Fine-tuning on retain images, which may recover forgotten knowledge unintentionally."""

import dataclasses

from l2l_jax.audit.attacks.base import Rate, register
from l2l_jax.audit.attacks.training import TrainingAttack


@register("retain_tuning")
@dataclasses.dataclass(frozen=True)
class RetainTuning(TrainingAttack):
    """Fine-tuning of the whole model on retain images only, without any forget images."""

    title = "retain images only, {steps} steps"
    source = 'arXiv 2505.22310, "Unlearning\'s Blind Spots"'

    learning_rate: Rate = 2e-3

    def training_images(self, variant, bench, seed):
        return bench.training.retain
