"""Group normalisation whose statistics are summed channel by channel first."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

FROM_PLACES = 256
"""Places of an image from which sums are taken channel by channel; on smaller ones it makes no difference."""


class GroupNorm(nn.GroupNorm):
    """`flax.linen.GroupNorm`, same parameters and results, for `[batch, …, channel]` and no mask.

    Flax sums over places and the channels of a group at once. A compiler that lays channels out next to one
    another then adds up two or four numbers at a time; sums over places alone are taken of as many channels
    as fit into a vector, and the few sums of a group are added afterwards. Statistics are float32.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, …, channel]` → the same shape, in `dtype`.

        Raises:
          ValueError: the groups do not divide the channels.
        """
        *around, channels = x.shape
        places = math.prod(around[1:])
        if places < FROM_PLACES or channels % self.num_groups:
            return super().__call__(x)
        scale, bias = (
            self.param(name, init, (channels,), self.param_dtype)
            for name, init in (("scale", self.scale_init), ("bias", self.bias_init))
        )
        flat = x.reshape(len(x), places, channels).astype(jnp.float32)
        group = (len(x), self.num_groups, channels // self.num_groups)

        def mean(sums: jax.Array) -> jax.Array:
            return sums.reshape(group).sum(axis=-1) / (places * group[-1])

        centre = mean(flat.sum(axis=1))
        variance = jnp.maximum(mean(jnp.square(flat).sum(axis=1)) - jnp.square(centre), 0)
        factor = jnp.repeat(jax.lax.rsqrt(variance + self.epsilon), group[-1], axis=-1) * scale[None]
        centre = jnp.repeat(centre, group[-1], axis=-1)
        # Else XLA's CPU compiler looks up the group of each channel again at every place.
        factor, centre = jax.lax.optimization_barrier((factor, centre))
        y = (flat - centre[:, None]) * factor[:, None] + bias[None, None]
        return y.astype(self.dtype or x.dtype).reshape(x.shape)
