"""Inception-v3 (Szegedy et al. 2016) in the variant used for the Fréchet Inception Distance.

The weights are those of TensorFlow's inception-2015-12-05 as ported by pytorch-fid. The same holds for the
differences from torchvision's network: 1008 classes, average pooling that excludes padding, and max pooling
in the last block.

Average pooling precedes a 1×1 convolution. Both are linear and the pooling weights sum to 1, so their order
can be swapped. The convolution is then computed jointly with its neighbors, and fewer channels are pooled.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import relu

from l2l_jax.evals.features.convolutions import conv, max_pool, mean_pool, pointwise
from l2l_jax.models.mapping import Table

IMAGE_SIZE = 299
NORM_EPSILON = 1e-3


class BlockA(nn.Module):
    """Mixed_5b to 5d: 1×1, 5×5, two 3×3, and average pooling with `pool_channels` channels."""

    pool_channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the block to `[batch, height, width, channel]`."""
        heads = dict(branch1x1=64, branch5x5_1=48, branch3x3dbl_1=64, branch_pool=self.pool_channels)
        straight, wide, deep, pooled = pointwise(x, heads)
        deep = relu(conv(relu(deep), "branch3x3dbl_2", 96, (3, 3), padding=(1, 1)))
        wide = conv(relu(wide), "branch5x5_2", 64, (5, 5), padding=(2, 2))
        deep = conv(deep, "branch3x3dbl_3", 96, (3, 3), padding=(1, 1))
        return relu(jnp.concatenate([straight, wide, deep, mean_pool(pooled)], axis=-1))


class BlockB(nn.Module):
    """Mixed_6a, which halves height and width."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the block to `[batch, height, width, channel]`."""
        deep = relu(conv(x, "branch3x3dbl_1", 64))
        deep = relu(conv(deep, "branch3x3dbl_2", 96, (3, 3), padding=(1, 1)))
        wide = relu(conv(x, "branch3x3", 384, (3, 3), stride=2))
        deep = relu(conv(deep, "branch3x3dbl_3", 96, (3, 3), stride=2))
        return jnp.concatenate([wide, deep, max_pool(x, stride=2)], axis=-1)


class BlockC(nn.Module):
    """Mixed_6b to 6e: 7×7 factored into 1×7 and 7×1, with `channels` channels in between."""

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the block to `[batch, height, width, channel]`."""
        heads = dict(branch1x1=192, branch7x7_1=self.channels, branch7x7dbl_1=self.channels, branch_pool=192)
        straight, wide, deep, pooled = pointwise(x, heads)
        wide = relu(_row(relu(wide), "branch7x7_2", self.channels))
        deep = relu(_column(relu(deep), "branch7x7dbl_2", self.channels))
        deep = relu(_row(deep, "branch7x7dbl_3", self.channels))
        deep = relu(_column(deep, "branch7x7dbl_4", self.channels))
        wide, deep = _column(wide, "branch7x7_3", 192), _row(deep, "branch7x7dbl_5", 192)
        return relu(jnp.concatenate([straight, wide, deep, mean_pool(pooled)], axis=-1))


class BlockD(nn.Module):
    """Mixed_7a, which halves height and width."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the block to `[batch, height, width, channel]`."""
        wide, deep = pointwise(x, dict(branch3x3_1=192, branch7x7x3_1=192))
        deep = relu(_row(relu(deep), "branch7x7x3_2", 192))
        deep = relu(_column(deep, "branch7x7x3_3", 192))
        wide = relu(conv(relu(wide), "branch3x3_2", 320, (3, 3), stride=2))
        deep = relu(conv(deep, "branch7x7x3_4", 192, (3, 3), stride=2))
        return jnp.concatenate([wide, deep, max_pool(x, stride=2)], axis=-1)


class BlockE(nn.Module):
    """Mixed_7b and 7c: 3×3 as parallel 1×3 and 3×1; 7c has max pooling."""

    max_pool: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the block to `[batch, height, width, channel]`."""
        heads = dict(branch1x1=320, branch3x3_1=384, branch3x3dbl_1=448)
        if self.max_pool:
            straight, wide, deep = pointwise(x, heads)
            pooled = conv(max_pool(x, padding=1), "branch_pool", 192)
        else:
            straight, wide, deep, pooled = pointwise(x, heads | dict(branch_pool=192))
            pooled = mean_pool(pooled)
        wide = relu(wide)
        deep = relu(conv(relu(deep), "branch3x3dbl_2", 384, (3, 3), padding=(1, 1)))
        branches = [straight]
        for inputs, name in ((wide, "branch3x3_2"), (deep, "branch3x3dbl_3")):
            branches.append(conv(inputs, f"{name}a", 384, (1, 3), padding=(0, 1)))
            branches.append(conv(inputs, f"{name}b", 384, (3, 1), padding=(1, 0)))
        return relu(jnp.concatenate([*branches, pooled], axis=-1))


def _row(x: jax.Array, name: str, channels: int) -> jax.Array:
    return conv(x, name, channels, (1, 7), padding=(0, 3))


def _column(x: jax.Array, name: str, channels: int) -> jax.Array:
    return conv(x, name, channels, (7, 1), padding=(3, 0))


class Inception(nn.Module):
    """The complete network."""

    classes: int = 1008

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Compute features `[image, 2048]` and logits of `[image, 299, 299, 3]` in [-1, 1]."""
        x = relu(conv(x, "Conv2d_1a_3x3", 32, (3, 3), stride=2))
        x = relu(conv(x, "Conv2d_2a_3x3", 32, (3, 3)))
        x = max_pool(relu(conv(x, "Conv2d_2b_3x3", 64, (3, 3), padding=(1, 1))), stride=2)
        self.sow("intermediates", "block0", x)
        x = relu(conv(x, "Conv2d_3b_1x1", 80))
        x = max_pool(relu(conv(x, "Conv2d_4a_3x3", 192, (3, 3))), stride=2)
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


TABLE = Table(
    {"{unit}/conv": "{unit}.conv", "{unit}/bn": "{unit}.bn", "fc": "fc"}, ignored=r".*\.num_batches_tracked"
)
"""Names in pt_inception-2015-12-05-6726825d.pth."""
