"""The unlearning loss on a Flax NNX encoder.

    python examples/loss_nnx.py

The model retains dark images and forgets bright ones. An NNX model contains its parameters, so the
features are computed here and `unlearning_loss` compares them.
"""

import jax
import optax
from flax import nnx

from l2l_jax import unlearning_inputs, unlearning_loss


class Encoder(nnx.Module):
    """An encoder from images `[batch, 8, 8, 3]` to features `[batch, 32]`."""

    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(8 * 8 * 3, 64, rngs=rngs)
        self.out = nnx.Linear(64, 32, rngs=rngs)

    def __call__(self, inputs):
        return self.out(nnx.relu(self.hidden(inputs.reshape(len(inputs), -1))))


def corrupt(images, rng):
    """Apply T: mask half of the pixels."""
    return images * jax.random.bernoulli(rng, 0.5, images.shape)


def main(steps: int = 300) -> dict[str, float]:
    """Unlearn, and return the two terms of the last step."""
    keys = jax.random.split(jax.random.key(0), 2)
    retain = 0.2 * jax.random.uniform(keys[0], (16, 8, 8, 3))
    forget = 1 - 0.2 * jax.random.uniform(keys[1], (16, 8, 8, 3))
    teacher = Encoder(nnx.Rngs(0))  # here: your trained model
    student = nnx.clone(teacher)
    optimizer = nnx.Optimizer(student, optax.adam(3e-3), wrt=nnx.Param)

    @nnx.jit
    def train_step(student, teacher, optimizer, rng):
        inputs = unlearning_inputs(corrupt, retain, forget, rng, value_range=(0, 1))

        def loss(student):
            return unlearning_loss(
                student(inputs.retain),
                teacher(inputs.retain),
                student(inputs.forget),
                teacher(inputs.noise),
                alpha=0.25,
            )

        gradients, terms = nnx.grad(loss, has_aux=True)(student)
        optimizer.update(student, gradients)
        return terms

    for step in range(steps):
        terms = train_step(student, teacher, optimizer, jax.random.key(step))
    return jax.tree.map(float, terms)


if __name__ == "__main__":
    print(main())
