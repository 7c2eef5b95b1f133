"""The unlearning loss under `shard_map`, with the batch split over all devices.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python examples/loss_shard_map.py

With `axis_name`, noise statistics and loss are global. Each device draws T for its own rows.
"""

import functools

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, PartitionSpec

from l2l_jax import encoder_unlearning_loss, unlearning_inputs


def encode(params, inputs):
    """Encode images `[batch, 8, 8, 3]` to features `[batch, 32]`."""
    hidden = jax.nn.relu(inputs.reshape(len(inputs), -1) @ params["hidden"])
    return hidden @ params["out"]


def corrupt(images, rng):
    """Apply T: mask half of the pixels."""
    return images * jax.random.bernoulli(rng, 0.5, images.shape)


def main(steps: int = 300) -> dict[str, float]:
    """Unlearn, and return the two terms of the last step."""
    keys = jax.random.split(jax.random.key(0), 4)
    retain = 0.2 * jax.random.uniform(keys[0], (16, 8, 8, 3))
    forget = 1 - 0.2 * jax.random.uniform(keys[1], (16, 8, 8, 3))
    teacher = {
        "hidden": jax.random.normal(keys[2], (192, 64)) / 14,
        "out": jax.random.normal(keys[3], (64, 32)) / 8,
    }
    optimizer = optax.adam(3e-3)
    mesh = jax.make_mesh((jax.device_count(),), ("batch",), axis_types=(AxisType.Auto,))
    whole, rows = PartitionSpec(), PartitionSpec("batch")

    @jax.jit
    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(whole, whole, rows, rows, whole), out_specs=(whole, whole, whole)
    )
    def train_step(student, opt_state, retain, forget, rng):
        inputs = unlearning_inputs(corrupt, retain, forget, rng, axis_name="batch")

        def loss(student):
            return encoder_unlearning_loss(encode, student, teacher, inputs, alpha=0.25, axis_name="batch")

        gradients, terms = jax.grad(loss, has_aux=True)(student)
        updates, opt_state = optimizer.update(jax.lax.pmean(gradients, "batch"), opt_state, student)
        return optax.apply_updates(student, updates), opt_state, terms

    student, opt_state = jax.tree.map(jnp.copy, teacher), optimizer.init(teacher)
    for step in range(steps):
        student, opt_state, terms = train_step(student, opt_state, retain, forget, jax.random.key(step))
    return jax.tree.map(float, terms)


if __name__ == "__main__":
    print(main())
