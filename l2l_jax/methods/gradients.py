"""Gradient rules beyond the weighted sum of `l2l_jax.methods.base`."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from l2l_jax.methods.base import Inputs, Mean, Task, Terms, weighted
from l2l_jax.models.base import Params


def set_gradients(
    task: Task, trained: Params, frozen: Params, inputs: Inputs
) -> tuple[dict[str, jax.Array], dict[str, Params]]:
    """Mean loss and gradient of each set, on its own rows: together about the work of one batch."""
    values, gradients = {}, {}
    for of in task.sets:

        def mean_loss(params, of=of):
            return task.losses(params, frozen, inputs[of]).mean()

        values[of], gradients[of] = jax.value_and_grad(mean_loss)(trained)
    return values, gradients


@dataclasses.dataclass(frozen=True)
class LookAhead:
    """The forget gradient is taken where an attacker would be after some steps of relearning.

        θ'₀ = θ,  θ'ₖ₊₁ = θ'ₖ − rate · sign(∇A(θ'ₖ)),  direction = ∇retain(θ) + sign · α · ∇forget(θ'_K)

    A is what the attacker minimises. First order: the attacker's steps are not differentiated, as in
    first-order meta-learning (Nichol et al. 2018) and tamper-resistant training (Tamirisa et al. 2024,
    "TAR"). The sign is what Adam's first step does. The attacker's gradients are averaged over all
    devices, so that they take the same steps.

    Attributes:
      attack: `(trained, frozen, inputs) -> scalar`, A over the rows of a device.
      steps: K.
      rate: change of every weight in an attacker's step.
    """

    attack: Callable[[Params, Params, Inputs], jax.Array]
    steps: int
    rate: float

    def compute(
        self, task: Task, trained: Params, frozen: Params, inputs: Inputs, alpha: jax.Array, mean: Mean
    ) -> tuple[Terms, dict[str, Params]]:
        """See `GradientRule`."""
        attacked = trained
        for _ in range(self.steps):
            gradient = mean(jax.grad(self.attack)(attacked, frozen, inputs))
            attacked = jax.tree.map(lambda x, g: x - self.rate * jnp.sign(g), attacked, gradient)
        attacked = jax.lax.stop_gradient(attacked)

        def retain_loss(params):
            return task.losses(params, frozen, inputs["retain"]).mean()

        def forget_loss(params):
            return task.losses(params, frozen, inputs["forget"]).mean()

        retain, retain_gradient = jax.value_and_grad(retain_loss)(trained)
        forget, forget_gradient = jax.value_and_grad(forget_loss)(attacked)
        terms = {"retain": retain, "forget": forget}
        signed = jax.tree.map(lambda g: task.forget_sign * g, forget_gradient)
        return {"loss": weighted(task, terms, alpha), **terms}, {"retain": retain_gradient, "forget": signed}

    def combine(self, terms: Terms, gradients: dict[str, Params], alpha: jax.Array) -> Params:
        """See `GradientRule`."""
        return jax.tree.map(lambda r, f: r + alpha * f, gradients["retain"], gradients["forget"])
