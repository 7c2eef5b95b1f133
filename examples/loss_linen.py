"""The unlearning loss on a Flax Linen encoder.

    python examples/loss_linen.py

The model retains dark images and forgets bright ones. `encoder_unlearning_loss` runs the encoder
once for the student and once for the teacher.
"""

import flax.linen as nn
import jax
import optax

from l2l_jax import encoder_unlearning_loss, unlearning_inputs


class Encoder(nn.Module):
    """An encoder from images `[batch, 8, 8, 3]` to features `[batch, 32]`."""

    @nn.compact
    def __call__(self, inputs):
        hidden = nn.relu(nn.Dense(64)(inputs.reshape(len(inputs), -1)))
        return nn.Dense(32)(hidden)


def corrupt(images, rng):
    """Apply T: mask half of the pixels."""
    return images * jax.random.bernoulli(rng, 0.5, images.shape)


def main(steps: int = 300) -> dict[str, float]:
    """Unlearn, and return the two terms of the last step."""
    keys = jax.random.split(jax.random.key(0), 3)
    retain = 0.2 * jax.random.uniform(keys[0], (16, 8, 8, 3))
    forget = 1 - 0.2 * jax.random.uniform(keys[1], (16, 8, 8, 3))
    model = Encoder()
    teacher = model.init(keys[2], retain)  # here: your trained parameters
    optimizer = optax.adam(3e-3)

    @jax.jit
    def train_step(student, opt_state, rng):
        inputs = unlearning_inputs(corrupt, retain, forget, rng, value_range=(0, 1))

        def loss(student):
            return encoder_unlearning_loss(model.apply, student, teacher, inputs, alpha=0.25)

        gradients, terms = jax.grad(loss, has_aux=True)(student)
        updates, opt_state = optimizer.update(gradients, opt_state, student)
        return optax.apply_updates(student, updates), opt_state, terms

    student, opt_state = teacher, optimizer.init(teacher)
    for step in range(steps):
        student, opt_state, terms = train_step(student, opt_state, jax.random.key(step))
    return jax.tree.map(float, terms)


if __name__ == "__main__":
    print(main())
