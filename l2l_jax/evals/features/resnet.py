"""ResNet-50 (He et al. 2016) trained on scenes, Places-365 (Zhou et al. 2018).

The stride of a block is in its 3×3 convolution, as in torchvision.
"""

import flax.linen as nn
import jax
from flax.linen import relu

from l2l_jax.evals.features.convolutions import conv, max_pool
from l2l_jax.models.mapping import Table

IMAGE_SIZE = 224
NORM_EPSILON = 1e-5
STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))  # channels of the 3×3 convolutions, and number of blocks


class Bottleneck(nn.Module):
    """A bottleneck block: 1×1, 3×3 and 1×1 convolutions, and a skip connection, projected if needed."""

    channels: int
    stride: int
    shortcut: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the block to `[batch, height, width, channel]`."""
        wide = 4 * self.channels
        y = relu(conv(x, "conv1", self.channels))
        y = relu(conv(y, "conv2", self.channels, (3, 3), stride=self.stride, padding=(1, 1)))
        y = conv(y, "conv3", wide)
        if self.shortcut:
            x = conv(x, "downsample", wide, stride=self.stride)
        return relu(x + y)


class ResNet50(nn.Module):
    """The complete network."""

    classes: int = 365

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Compute features `[image, 2048]` and logits of images normalized by ImageNet statistics."""
        x = relu(conv(x, "conv1", 64, (7, 7), stride=2, padding=(3, 3)))
        x = max_pool(x, stride=2, padding=1)
        self.sow("intermediates", "maxpool", x)
        for stage, (channels, blocks) in enumerate(STAGES, start=1):
            for block in range(blocks):
                stride = 2 if block == 0 and stage > 1 else 1
                x = Bottleneck(channels, stride, block == 0, name=f"layer{stage}_{block}")(x)
            self.sow("intermediates", f"layer{stage}", x)
        features = x.mean(axis=(1, 2))
        return features, nn.Dense(self.classes, name="fc")(features)


TABLE = Table(
    {
        "conv{k}/conv": "conv{k}",
        "conv{k}/bn": "bn{k}",
        "layer{i}_{j}/conv{k}/conv": "layer{i}.{j}.conv{k}",
        "layer{i}_{j}/conv{k}/bn": "layer{i}.{j}.bn{k}",
        "layer{i}_{j}/downsample/conv": "layer{i}.{j}.downsample.0",
        "layer{i}_{j}/downsample/bn": "layer{i}.{j}.downsample.1",
        "fc": "fc",
    },
    ignored=r"(.*\.)?num_batches_tracked",
)
"""Names in resnet50_places365.pth.tar."""
