"""The unlearning loss on an Equinox encoder.

    pip install equinox
    python examples/loss_equinox.py

The model retains dark images and forgets bright ones. An Equinox model is a pytree of parameters
and a function of one example; `jax.vmap` makes it a function of a batch.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from l2l_jax import encoder_unlearning_loss, unlearning_inputs


class Encoder(eqx.Module):
    """An encoder from one image `[8, 8, 3]` to features `[32]`."""

    network: eqx.nn.MLP

    def __init__(self, rng):
        self.network = eqx.nn.MLP(8 * 8 * 3, 32, width_size=64, depth=1, key=rng)

    def __call__(self, inputs):
        return self.network(jnp.ravel(inputs))


def encode(model, inputs):
    """Encode images `[batch, 8, 8, 3]` to features `[batch, 32]`."""
    return jax.vmap(model)(inputs)


def corrupt(images, rng):
    """Apply T: mask half of the pixels."""
    return images * jax.random.bernoulli(rng, 0.5, images.shape)


def main(steps: int = 300) -> dict[str, float]:
    """Unlearn, and return the two terms of the last step."""
    keys = jax.random.split(jax.random.key(0), 3)
    retain = 0.2 * jax.random.uniform(keys[0], (16, 8, 8, 3))
    forget = 1 - 0.2 * jax.random.uniform(keys[1], (16, 8, 8, 3))
    teacher = Encoder(keys[2])  # here: your trained model
    optimizer = optax.adam(3e-3)

    @eqx.filter_jit
    def train_step(student, opt_state, rng):
        inputs = unlearning_inputs(corrupt, retain, forget, rng, value_range=(0, 1))

        @eqx.filter_grad(has_aux=True)
        def gradient(student):
            return encoder_unlearning_loss(encode, student, teacher, inputs, alpha=0.25)

        gradients, terms = gradient(student)
        updates, opt_state = optimizer.update(gradients, opt_state, weights_of(student))
        return eqx.apply_updates(student, updates), opt_state, terms

    student, opt_state = teacher, optimizer.init(weights_of(teacher))
    for step in range(steps):
        student, opt_state, terms = train_step(student, opt_state, jax.random.key(step))
    return jax.tree.map(float, terms)


def weights_of(model):
    """Return the trained part of a model: its floating-point arrays."""
    return eqx.filter(model, eqx.is_inexact_array)


if __name__ == "__main__":
    print(main())
