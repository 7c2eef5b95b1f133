"""Forgetting at the weights an attacker would reach after a few relearning steps."""

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import pydantic

from l2l_jax.losses import noisy_label_loss
from l2l_jax.methods.base import Method, Objective, register, unlearning_objective
from l2l_jax.methods.inputs import BLUR, TargetKind, corrupt_images, forget_truth
from l2l_jax.models.base import Model


@register("relearn_aware")
@dataclasses.dataclass(frozen=True)
class RelearnAware(Method):
    """Unlearning that survives an attacker's first training steps.

        L(x_r; θ) + alpha · L(x_f, with `target` as ground truth; θ')
        θ'₀ = θ,  θ'ₖ₊₁ = θ'ₖ − rate · sign(∇L(x_r; θ'ₖ)),  θ' after the last of the attacker's steps

    Encoder and decoder are trained. The method is first-order: the attacker's steps are not differentiated,
    as in first-order meta-learning (Nichol et al. 2018) and tamper-resistant training (Tamirisa et al. 2024,
    "TAR"). The sign matches the first step of Adam. The attacker's gradients are averaged over all devices.

    Attributes:
      target: Target of forget images, see `l2l_jax.methods.inputs.forget_truth`.
      target_blur: Standard deviation of "blur" as a share of the image's side.
      attack_steps: Number of simulated attacker steps; each costs half a training step.
      attack_rate: Change of every weight in each of these steps.
    """

    target: TargetKind = "noise"
    target_blur: Annotated[float, pydantic.Field(gt=0)] = BLUR
    attack_steps: Annotated[int, pydantic.Field(ge=1)] = 1
    attack_rate: Annotated[float, pydantic.Field(gt=0)] = 1e-3

    def objective(self, model: Model) -> Objective:
        def prepare(frozen, batch, rng, axis_name=None):
            views = corrupt_images(model, frozen, batch, rng, axis_name)
            truth = forget_truth(model, frozen, views, rng, self.target, axis_name, blur=self.target_blur)
            return {**views, "forget": truth}

        def losses(trained, frozen, rows):
            return model.generative_loss({**frozen, **trained}, rows["images"], rows["corrupted"])

        def attack(trained, frozen, inputs, mean):
            for _ in range(self.attack_steps):
                gradient = mean(jax.grad(lambda x: losses(x, frozen, inputs["retain"]).mean())(trained))
                trained = jax.tree.map(lambda x, g: x - self.attack_rate * jnp.sign(g), trained, gradient)
            return trained

        def loss(trained, frozen, inputs, alpha):
            # Evaluate at the attacked weights; their derivative with respect to the trained weights is 1.
            stop, ahead = jax.lax.stop_gradient, inputs.get("ahead", trained)
            attacked = jax.tree.map(lambda a, x: stop(a) + (x - stop(x)), ahead, trained)
            retain = losses(trained, frozen, inputs["retain"])
            forget = losses(attacked, frozen, inputs["forget"])
            return noisy_label_loss(retain, forget, alpha=alpha)

        # Parameters are not cast: the attacker's small steps would be lost to rounding.
        fields: Any = dict(look_ahead=attack, cast=lambda params: params)
        return unlearning_objective(model, model.generative_parts, prepare, loss, **fields)
