"""A new decoder for the frozen encoder, to recover knowledge from the encoder's features."""

import dataclasses

from l2l_jax.audit.attacks.base import Count, Rate, register
from l2l_jax.audit.attacks.training import TrainingAttack
from l2l_jax.data.records import Mixture
from l2l_jax.methods.base import pretraining_objective
from l2l_jax.models.base import fresh_parts


@register("fresh_decoder")
@dataclasses.dataclass(frozen=True)
class FreshDecoder(TrainingAttack):
    """Training of a new decoder for the frozen encoder, once on retain images and once on all images."""

    source = 'the "secondary autoencoder" that reviewers of arXiv 2402.00351 asked for'
    cost = "twice `steps` training steps, without the encoder's backward pass"
    measurements = 1

    steps: Count = 600
    learning_rate: Rate = 2e-3

    def variants(self, bench):
        return {
            f"fresh_decoder_{images}": f"fresh decoder, {images} images, {self.steps} steps"
            for images in ("retain", "all")
        }

    def objective(self, model):
        fresh = fresh_parts(model, ["decoder"])
        stage = model.pretraining_stages()[-1]._replace(trained=("decoder",))
        objective = pretraining_objective(stage, tuple(model.shapes()))
        return dataclasses.replace(objective, start=lambda params, rng: {**params, **fresh(rng)})

    def training_images(self, variant, bench, seed):
        sets = bench.training._asdict()
        if variant == "fresh_decoder_retain":
            return sets["retain"]
        return Mixture(sets, [len(source) for source in sets.values()])
