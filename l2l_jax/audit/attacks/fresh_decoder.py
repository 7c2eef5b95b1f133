"""A fresh decoder over the frozen encoder: what do the encoder's features still hold?"""

import dataclasses

from l2l_jax.audit.attacks.base import Attack, Count, Rate, register
from l2l_jax.audit.trainings import Training, fresh_decoder
from l2l_jax.data.records import Mixture


@register("fresh_decoder")
@dataclasses.dataclass(frozen=True)
class FreshDecoder(Attack):
    """Train a new decoder over the frozen encoder, on retain images and on all images.

    Attributes:
      steps: Training steps of each of the two.
      batch_size: Images of a step.
      learning_rate: Constant rate of AdamW.
    """

    source = 'the "secondary autoencoder" that reviewers of arXiv 2402.00351 asked for'
    cost = "twice `steps` training steps, without the encoder's backward pass"
    is_curve = is_seeded = True

    steps: Count = 600
    batch_size: Count = 64
    learning_rate: Rate = 2e-3

    def variants(self, bench):
        """Return one variant for retain images and one for all images."""
        return {
            f"fresh_decoder_{images}": f"fresh decoder, {images} images, {self.steps} steps"
            for images in ("retain", "all")
        }

    def run(self, variant, bench, target, seed):
        """Train a new decoder and measure the model with it."""
        images = bench.training.retain
        if variant == "fresh_decoder_all":
            sets = bench.training._asdict()
            images = Mixture(sets, [len(source) for source in sets.values()])
        training = Training(
            fresh_decoder(bench.model), images, self.steps, self.batch_size, self.learning_rate
        )
        return bench.train(target, variant, training, (self.steps,), seed)
