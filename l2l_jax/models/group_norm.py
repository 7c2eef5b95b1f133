"""Group normalisation whose statistics are summed channel by channel first."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp


class GroupNorm(nn.Module):
    """`flax.linen.GroupNorm` of `[batch, …, channel]`, with the same parameters and results.

    Flax sums over places and the channels of a group at once, and XLA's CPU compiler then adds up two or four
    numbers at a time. Sums over places alone are taken of as many channels as fit into a vector; the few sums
    of a group are added afterwards.

    Attributes:
      num_groups: must divide the channels.
      epsilon: added to the variance.
      dtype: of the result; None: that of input and parameters, promoted. Statistics are float32.
    """

    num_groups: int
    epsilon: float
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, …, channel]` → the same shape.

        Raises:
          ValueError: the groups do not divide the channels.
        """
        batch, *sides, channels = x.shape
        if channels % self.num_groups:
            raise ValueError(f"{self.num_groups} groups do not divide {channels} channels")
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        places, size = math.prod(sides), channels // self.num_groups
        flat = x.reshape(batch, places, channels).astype(jnp.float32)

        def group_mean(sums: jax.Array) -> jax.Array:
            return sums.reshape(batch, self.num_groups, size).sum(axis=-1) / (places * size)

        mean = group_mean(flat.sum(axis=1))
        variance = jnp.maximum(group_mean(jnp.square(flat).sum(axis=1)) - jnp.square(mean), 0)
        factor = jnp.repeat(jax.lax.rsqrt(variance + self.epsilon), size, axis=-1) * scale[None]
        mean = jnp.repeat(mean, size, axis=-1)
        y = (flat - mean[:, None]) * factor[:, None] + bias[None, None]
        return y.astype(self.dtype or jnp.result_type(x, scale, bias)).reshape(x.shape)
