"""Inception-v3 (Szegedy et al. 2016) in the variant that the Fréchet Inception Distance is measured with.

The weights are those of TensorFlow's inception-2015-12-05 as ported by pytorch-fid, and so are the
differences to torchvision's network: 1008 classes, average pools that leave the padding out, a maximum in
the last block.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from l2l_jax.evaluation.features import convolutions
from l2l_jax.evaluation.features.convolutions import Conv
from l2l_jax.weights.mapping import Ignored, Rule, linear

IMAGE_SIZE = 299
NORM_EPSILON = 1e-3


class BlockA(nn.Module):
    """Mixed_5b to 5d: 1×1, 5×5, two 3×3, and an average pool with `pool_channels` channels."""

    pool_channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        wide = Conv(48, name="branch5x5_1")(x)
        deep = Conv(64, name="branch3x3dbl_1")(x)
        deep = Conv(96, (3, 3), padding=(1, 1), name="branch3x3dbl_2")(deep)
        branches = [
            Conv(64, name="branch1x1")(x),
            Conv(64, (5, 5), padding=(2, 2), name="branch5x5_2")(wide),
            Conv(96, (3, 3), padding=(1, 1), name="branch3x3dbl_3")(deep),
            _pooled(Conv(self.pool_channels, relu=False, name="branch_pool")(x)),
        ]
        return jnp.concatenate(branches, axis=-1)


class BlockB(nn.Module):
    """Mixed_6a: halves height and width."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        deep = Conv(64, name="branch3x3dbl_1")(x)
        deep = Conv(96, (3, 3), padding=(1, 1), name="branch3x3dbl_2")(deep)
        branches = [
            Conv(384, (3, 3), 2, name="branch3x3")(x),
            Conv(96, (3, 3), 2, name="branch3x3dbl_3")(deep),
            _shrunk(x),
        ]
        return jnp.concatenate(branches, axis=-1)


class BlockC(nn.Module):
    """Mixed_6b to 6e: 7×7 as rows and columns of 7, with `channels` channels between them."""

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        wide = Conv(self.channels, name="branch7x7_1")(x)
        wide = _row(self.channels, "branch7x7_2")(wide)
        deep = Conv(self.channels, name="branch7x7dbl_1")(x)
        deep = _column(self.channels, "branch7x7dbl_2")(deep)
        deep = _row(self.channels, "branch7x7dbl_3")(deep)
        deep = _column(self.channels, "branch7x7dbl_4")(deep)
        branches = [
            Conv(192, name="branch1x1")(x),
            _column(192, "branch7x7_3")(wide),
            _row(192, "branch7x7dbl_5")(deep),
            _pooled(Conv(192, relu=False, name="branch_pool")(x)),
        ]
        return jnp.concatenate(branches, axis=-1)


class BlockD(nn.Module):
    """Mixed_7a: halves height and width."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        deep = Conv(192, name="branch7x7x3_1")(x)
        deep = _column(192, "branch7x7x3_3")(_row(192, "branch7x7x3_2")(deep))
        branches = [
            Conv(320, (3, 3), 2, name="branch3x3_2")(Conv(192, name="branch3x3_1")(x)),
            Conv(192, (3, 3), 2, name="branch7x7x3_4")(deep),
            _shrunk(x),
        ]
        return jnp.concatenate(branches, axis=-1)


class BlockE(nn.Module):
    """Mixed_7b and 7c: 3×3 as a row beside a column; 7c pools by the maximum."""

    max_pool: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        wide = Conv(384, name="branch3x3_1")(x)
        deep = Conv(448, name="branch3x3dbl_1")(x)
        deep = Conv(384, (3, 3), padding=(1, 1), name="branch3x3dbl_2")(deep)
        row, column = dict(kernel=(1, 3), padding=(0, 1)), dict(kernel=(3, 1), padding=(1, 0))
        if self.max_pool:
            around = ((1, 1), (1, 1))
            pooled = Conv(192, name="branch_pool")(nn.max_pool(x, (3, 3), padding=around))
        else:
            pooled = _pooled(Conv(192, relu=False, name="branch_pool")(x))
        branches = [
            Conv(320, name="branch1x1")(x),
            Conv(384, **row, name="branch3x3_2a")(wide),
            Conv(384, **column, name="branch3x3_2b")(wide),
            Conv(384, **row, name="branch3x3dbl_3a")(deep),
            Conv(384, **column, name="branch3x3dbl_3b")(deep),
            pooled,
        ]
        return jnp.concatenate(branches, axis=-1)


def _row(channels: int, name: str) -> Conv:
    return Conv(channels, (1, 7), padding=(0, 3), name=name)


def _column(channels: int, name: str) -> Conv:
    return Conv(channels, (7, 1), padding=(3, 0), name=name)


def _pooled(x: jax.Array) -> jax.Array:
    """Mean of 3×3 pixels, the padding not counted; then ReLU.

    The network pools and then convolves 1×1. Both are linear and the pool's weights sum to 1, so that they
    may change places: there is less to pool afterwards.
    """
    sums = nn.pool(x, 0.0, jax.lax.add, (3, 3), (1, 1), ((1, 1), (1, 1)))
    rows, columns = (np.convolve(np.ones(size), np.ones(3), "same") for size in x.shape[1:3])
    inside = np.outer(rows, columns).astype(np.float32)  # pixels of each 3×3 that are no padding
    return nn.relu(sums / inside[None, :, :, None])


def _shrunk(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), (2, 2))


class Inception(nn.Module):
    """The whole network."""

    classes: int = 1008

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Features and logits.

        Args:
          x: `[batch, height, width, 3]` in [-1, 1]; 299 × 299 pixels for the published figures.

        Returns:
          Features `[batch, 2048]` and logits `[batch, class]`.
        """
        x = Conv(32, (3, 3), 2, name="Conv2d_1a_3x3")(x)
        x = Conv(32, (3, 3), name="Conv2d_2a_3x3")(x)
        x = _shrunk(Conv(64, (3, 3), padding=(1, 1), name="Conv2d_2b_3x3")(x))
        self.sow("intermediates", "block0", x)
        x = Conv(80, name="Conv2d_3b_1x1")(x)
        x = _shrunk(Conv(192, (3, 3), name="Conv2d_4a_3x3")(x))
        self.sow("intermediates", "block1", x)
        for name, pool_channels in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = BlockA(pool_channels, name=name)(x)
        x = BlockB(name="Mixed_6a")(x)
        for name, channels in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
            x = BlockC(channels, name=name)(x)
        self.sow("intermediates", "block2", x)
        x = BlockD(name="Mixed_7a")(x)
        x = BlockE(max_pool=False, name="Mixed_7b")(x)
        x = BlockE(max_pool=True, name="Mixed_7c")(x)
        features = x.mean(axis=(1, 2))
        return features, nn.Dense(self.classes, name="fc")(features)


def table(params: dict) -> list[Rule | Ignored]:
    """The rules of pt_inception-2015-12-05-6726825d.pth, for the parameters' shapes as files hold them."""
    found = []
    for path in traverse_util.flatten_dict(params):
        if path[-2:] != ("conv", "kernel"):
            continue
        unit, key = "/".join(path[:-2]), ".".join(path[:-2])
        found += convolutions.rules(f"{key}.conv", f"{key}.bn", unit)
    return [
        *found,
        Rule("fc.weight", "fc/kernel", linear),
        Rule("fc.bias", "fc/bias"),
        Ignored(r".*\.num_batches_tracked"),
    ]
