"""Vision-transformer layers (Dosovitskiy et al. 2021) with the structure and parameter names of timm."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from l2l_jax.models.layers import gelu, in_dtype, loop, remat_block
from l2l_jax.models.layers.attention import attention

xavier = nn.initializers.xavier_uniform()


class Attention(nn.Module):
    """Multi-head self-attention over `[batch, token, width]` with one fused projection."""

    num_heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, tokens, width = x.shape
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=xavier)
        qkv = dense(3 * width, name="qkv")(x)
        qkv = qkv.reshape(batch, tokens, 3, self.num_heads, width // self.num_heads)
        out = attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        return dense(width, name="proj")(out.reshape(batch, tokens, width))


class Mlp(nn.Module):
    """Two dense layers with the exact (erf) GELU between them."""

    hidden: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=xavier)
        return dense(x.shape[-1], name="fc2")(gelu(dense(self.hidden, name="fc1")(x)))


class Block(nn.Module):
    """Pre-norm transformer block on `[batch, token, width]`; the residual sum has the dtype of the input."""

    num_heads: int
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        norm = functools.partial(nn.LayerNorm, epsilon=self.norm_eps, dtype=self.dtype)
        x = x + Attention(self.num_heads, self.dtype, name="attn")(norm(name="norm1")(x))
        return x + Mlp(int(x.shape[-1] * self.mlp_ratio), self.dtype, name="mlp")(norm(name="norm2")(x))


@dataclasses.dataclass(frozen=True)
class Stack:
    """A sequence of blocks whose parameters are named `{prefix}_{i}` in the calling module.

    With `remat`, only the input of each block is saved for the backward pass. With `scan`, one block is
    looped `depth` times, which makes the program smaller and compilation faster by that factor. However, the
    blocks' parameters are copied into stacked arrays; on CPU that costs more than it saves.
    """

    prefix: str
    depth: int
    num_heads: int
    dtype: jnp.dtype = jnp.float32
    norm_eps: float = 1e-6
    remat: bool = False
    scan: bool = False

    def __call__(self, parent: nn.Module, x: Array) -> Array:
        if self.scan and not parent.is_initializing():
            return self._scanned(parent.variables["params"], x)
        block = remat_block(Block, self.remat)
        for i in range(self.depth):
            name = f"{self.prefix}_{i}"
            x = block(self.num_heads, norm_eps=self.norm_eps, dtype=self.dtype, name=name)(x)
        return x

    def _scanned(self, params: Mapping[str, Any], x: Array) -> Array:
        block = Block(self.num_heads, norm_eps=self.norm_eps, dtype=self.dtype, parent=None)
        blocks = [in_dtype(params[f"{self.prefix}_{i}"], self.dtype) for i in range(self.depth)]
        return loop(block, blocks, self.remat, x)


def stack(model: Any, prefix: str, norm_eps: float = 1e-6) -> Stack:
    """Return the blocks of a model's encoder or, with the prefix "decoder_", of its decoder."""
    depth, num_heads = (getattr(model, f"{prefix}{name}") for name in ("depth", "num_heads"))
    options = jnp.dtype(model.dtype), norm_eps, model.remat, model.scan
    return Stack(f"{prefix}blocks", depth, num_heads, *options)


class PatchEmbed(nn.Module):
    """Linear embedding of flattened patches; the kernel has the shape of a strided convolution's kernel."""

    patch_size: int
    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, patches: Array) -> Array:
        """Map `[batch, patch, patch_size² · channel]` (row, column, channel) to `[…, width]`."""
        channels = patches.shape[-1] // self.patch_size**2
        shape = (self.patch_size, self.patch_size, channels, self.width)
        kernel = self.param("kernel", lambda rng: xavier(rng, (patches.shape[-1], self.width)).reshape(shape))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        kernel = kernel.reshape(-1, self.width).astype(self.dtype)
        return patches.astype(self.dtype) @ kernel + bias.astype(self.dtype)[None, None]


def patchify(images: Array, patch_size: int) -> Array:
    """Cut `[batch, height, width, channel]` into `[batch, patch, patch_size² · channel]`, row-major."""
    batch, height, width, channels = images.shape
    rows, columns = height // patch_size, width // patch_size
    x = images.reshape(batch, rows, patch_size, columns, patch_size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, -1)


def unpatchify(patches: Array, patch_size: int, height: int, width: int) -> Array:
    """Invert `patchify`."""
    batch, rows, columns = patches.shape[0], height // patch_size, width // patch_size
    x = patches.reshape(batch, rows, columns, patch_size, patch_size, -1)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height, width, -1)


def sincos_position_table(width: int, grid: int) -> np.ndarray:
    """Return the fixed 2-D sine-cosine position table `[1 + grid², width]` of MAE (He et al. 2022), float32.

    Row 0 is for the class token and is zero. The first half of the channels encodes the column, the second
    half the row; each half is sines, then cosines, of position · 10000^(−2i/(width/2)).
    """
    if width % 4:
        raise ValueError(f"sine-cosine positions need a width divisible by 4, not {width}")
    quarter = width // 4
    frequency = 1.0 / 10000 ** (np.arange(quarter, dtype=np.float64) / quarter)
    row, column = np.meshgrid(np.arange(grid), np.arange(grid), indexing="ij")
    halves = []
    for position in (column, row):
        angle = position.reshape(-1, 1).astype(np.float64) * frequency
        halves += [np.sin(angle), np.cos(angle)]
    table = np.concatenate(halves, axis=1)
    return np.concatenate([np.zeros((1, width)), table]).astype(np.float32)
