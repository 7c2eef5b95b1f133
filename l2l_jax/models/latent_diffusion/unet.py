"""The conditional U-Net of Stable Diffusion (Rombach et al. 2022; Podell et al. 2024), split in two.

Equivalent to diffusers' `UNet2DConditionModel`. Feature maps are `[batch, height, width, channel]`. Module
names follow diffusers' `down_blocks.{i}.resnets.{j}`, with "_" between numbered parts.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from l2l_jax.errors import UserError
from l2l_jax.models.latent_diffusion.blocks import ResBlock, check_config, conv, per_level
from l2l_jax.models.layers import doubled, gelu, in_dtype, loop, remat_block, sinusoids
from l2l_jax.models.layers.attention import attention
from l2l_jax.models.layers.group_norm import GroupNorm
from l2l_jax.models.palette.unet import lecun_uniform

ATTENDS = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}

SUPPORTED = dict(
    down_block_types=ATTENDS,
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    mid_block_type=("UNetMidBlock2DCrossAttn",),
    addition_embed_type=(None, "text_time"),
    act_fn=("silu",),
    flip_sin_to_cos=(True,),
    freq_shift=(0,),
    time_embedding_type=("positional",),
    mid_block_only_cross_attention=(None, False),
)
"""Supported values in config.json."""
SUPPORTED |= dict.fromkeys(("downsample_padding", "mid_block_scale_factor", "resnet_out_scale_factor"), (1,))
SUPPORTED |= dict.fromkeys(("conv_in_kernel", "conv_out_kernel"), (3,))
SUPPORTED |= dict.fromkeys(("resnet_time_scale_shift", "attention_type"), ("default",))
SUPPORTED |= dict.fromkeys(("only_cross_attention", "dual_cross_attention"), (False,))
SUPPORTED |= dict.fromkeys(("center_input_sample", "resnet_skip_time_act"), (False,))
SUPPORTED |= dict.fromkeys(
    ("class_embed_type", "encoder_hid_dim_type", "encoder_hid_dim", "num_attention_heads")
    + ("time_embedding_dim", "time_embedding_act_fn", "timestep_post_act", "time_cond_proj_dim")
    + ("cross_attention_norm", "reverse_transformer_layers_per_block", "num_class_embeds"),
    (None,),
)


@dataclasses.dataclass(frozen=True)
class UNetSizes:
    """Sizes of a U-Net; all tuples have one value per level, from the highest resolution to the lowest.

    Attributes:
      in_channels: Channels of the input, 9 for inpainting: noisy latents, mask, latents of the masked image.
      out_channels: Channels of the latents.
      block_out_channels: Width of each level.
      attends: Whether each level has attention; the middle block always has it.
      layers_per_block: Residual blocks of a level; the decoder has one more.
      transformer_layers: Transformer blocks per attention module.
      heads: Number of attention heads.
      cross_attention_dim: Width of prompt embeddings.
      linear_projection: Whether transformers begin and end with dense layers instead of 1 × 1 convolutions;
        the two differ only in the shape of their kernels.
      norm_groups, norm_eps: Groups and epsilon of the group normalizations.
      added_time_dim, added_dim: For SDXL, width of the embedding of each size in pixels, and total width of
        these and the pooled prompt; 0 for none.
    """

    in_channels: int = 9
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    attends: tuple[bool, ...] = (True, True, True, False)
    layers_per_block: tuple[int, ...] = (2, 2, 2, 2)
    transformer_layers: tuple[int, ...] = (1, 1, 1, 1)
    heads: tuple[int, ...] = (8, 8, 8, 8)
    cross_attention_dim: int = 768
    linear_projection: bool = False
    norm_groups: int = 32
    norm_eps: float = 1e-5
    added_time_dim: int = 0
    added_dim: int = 0

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> Self:
        """Read unet/config.json of diffusers; unsupported values raise a UserError that names them."""
        name = "unet/config.json"
        check_config(name, config, SUPPORTED)
        widths = tuple(config.get("block_out_channels", (320, 640, 1280, 1280)))
        levels = len(widths)
        down = config.get("down_block_types", ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"])
        up = config.get("up_block_types", ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3)
        if [kind.replace("Up", "Down") for kind in reversed(up)] != list(down):
            raise UserError(f"{name}: up_block_types {up} do not mirror down_block_types {down}.")
        cross = set(per_level(config.get("cross_attention_dim", 1280), levels))
        if len(cross) > 1:
            raise UserError(f"{name}: expected one cross_attention_dim, got {sorted(cross)}.")
        added = config.get("addition_embed_type") is not None
        return cls(
            in_channels=config.get("in_channels", 4),
            out_channels=config.get("out_channels", 4),
            block_out_channels=widths,
            attends=per_level([ATTENDS[kind] for kind in down], levels),
            layers_per_block=per_level(config.get("layers_per_block", 2), levels),
            transformer_layers=per_level(config.get("transformer_layers_per_block", 1), levels),
            # diffusers' attention_head_dim is the number of heads.
            heads=per_level(config.get("attention_head_dim", 8), levels),
            cross_attention_dim=cross.pop(),
            linear_projection=config.get("use_linear_projection", False),
            norm_groups=config.get("norm_num_groups", 32),
            norm_eps=config.get("norm_eps", 1e-5),
            added_time_dim=config["addition_time_embed_dim"] if added else 0,
            added_dim=config["projection_class_embeddings_input_dim"] if added else 0,
        )

    def __post_init__(self):
        attends = (*self.attends[:-1], True)  # the middle block has the sizes of the last level
        for width, heads, attended in zip(self.block_out_channels, self.heads, attends, strict=True):
            if width % self.norm_groups or (attended and width % heads):
                raise ValueError(f"{self.norm_groups} groups and {heads} heads must divide the width {width}")

    @property
    def stride(self) -> int:
        """Total downsampling factor of the sides of latents."""
        return 2 ** (len(self.block_out_channels) - 1)


class Features(NamedTuple):
    """Outputs of the encoder."""

    hidden: Array  # output of the middle block
    # Skip connections to the decoder: outputs of the first convolution and of each block and downsampling
    skips: tuple[Array, ...]
    embedding: Array  # time step embedding, float32, for the decoder; the objective does not compare it


class Embedding(nn.Module):
    """Two dense layers from `[batch, channel]` to `[batch, width]`, float32."""

    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.silu(nn.Dense(self.width, kernel_init=lecun_uniform, name="linear_1")(x))
        return nn.Dense(self.width, kernel_init=lecun_uniform, name="linear_2")(x)


class Attention(nn.Module):
    """Attention from `[batch, token, channel]` to a context, which is the input itself in self-attention."""

    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, context: Array) -> Array:
        dense = functools.partial(nn.Dense, x.shape[-1], dtype=self.dtype, kernel_init=lecun_uniform)
        inputs = {"to_q": x, "to_k": context, "to_v": context}
        projected = (dense(use_bias=False, name=name)(y) for name, y in inputs.items())
        split = [y.reshape(*y.shape[:2], self.heads, -1) for y in projected]
        return dense(name="to_out")(attention(*split).reshape(x.shape))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the prompt `[batch, word, channel]`, and a gated MLP."""

    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, prompt: Array) -> Array:
        norm = functools.partial(nn.LayerNorm, epsilon=1e-5, dtype=self.dtype)
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=lecun_uniform)
        normalized, width = norm(name="norm1")(x), x.shape[-1]
        x = x + Attention(self.heads, self.dtype, name="attn1")(normalized, normalized)
        x = x + Attention(self.heads, self.dtype, name="attn2")(norm(name="norm2")(x), prompt)
        value, gate = jnp.split(dense(8 * width, name="ff_in")(norm(name="norm3")(x)), 2, axis=-1)
        return x + dense(width, name="ff_out")(value * gelu(gate))


class Transformer(nn.Module):
    """Residual transformer blocks over all positions; the identity when newly initialized."""

    sizes: UNetSizes
    level: int
    dtype: jnp.dtype
    scan: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, x: Array, prompt: Array) -> Array:
        sizes, (batch, height, width, channels) = self.sizes, x.shape

        def project(name: str, init: Any = lecun_uniform) -> nn.Module:
            if sizes.linear_projection:
                return nn.Dense(channels, dtype=self.dtype, kernel_init=init, name=name)
            return conv(channels, 1, self.dtype, name, kernel_init=init)

        h = GroupNorm(sizes.norm_groups, epsilon=1e-6, dtype=self.dtype, name="norm")(x)
        h = project("proj_in")(h).reshape(batch, height * width, channels)
        names = [f"transformer_blocks_{k}" for k in range(sizes.transformer_layers[self.level])]
        options = sizes.heads[self.level], self.dtype
        if self.scan and len(names) > 1 and not self.is_initializing():
            blocks = [in_dtype(self.variables["params"][name], self.dtype) for name in names]
            h = loop(TransformerBlock(*options, parent=None), blocks, self.remat, h, prompt)
        else:
            for name in names:
                h = TransformerBlock(*options, name=name)(h, prompt)
        return x + project("proj_out", nn.initializers.zeros)(h.reshape(x.shape))


class Half(nn.Module):
    """Blocks shared by the two halves of the U-Net."""

    sizes: UNetSizes  # sizes of the complete U-Net
    dtype: jnp.dtype = jnp.float32  # dtype of products and feature maps; time embeddings, output are float32
    remat: bool = False  # recompute the activations of every block in the backward pass
    scan: bool = False  # loop over one compiled transformer block where several are in sequence

    @nn.nowrap
    def _res_block(self, channels: int, name: str) -> nn.Module:
        groups, epsilon = self.sizes.norm_groups, self.sizes.norm_eps
        return remat_block(ResBlock, self.remat)(channels, groups, epsilon, self.dtype, name=name)

    @nn.nowrap
    def _transformer(self, level: int, name: str) -> nn.Module:
        options = self.sizes, level, self.dtype, self.scan, self.remat
        return remat_block(Transformer, self.remat)(*options, name=name)


class Encoder(Half):
    """First convolution, time embedding, down blocks and middle block."""

    @nn.compact
    def __call__(
        self, latents: Array, timesteps: Array, prompt: Array, added: Mapping[str, Array] | None = None
    ) -> Features:
        """Return features of latents.

        Args:
          latents: `[batch, height, width, in_channels]`; sides are multiples of `sizes.stride`.
          timesteps: `[batch]`.
          prompt: Embedded prompts `[batch, word, cross_attention_dim]`.
          added: For SDXL, "pooled", the pooled prompts `[batch, channel]`, and "sizes" `[batch, 6]`: height
            and width of the original, top and left of the crop, height and width of the result, in pixels.
        """
        sizes, dtype, widths = self.sizes, self.dtype, self.sizes.block_out_channels
        embedding = Embedding(4 * widths[0], name="time_embedding")(sinusoids(timesteps, widths[0]))
        if sizes.added_dim:
            if added is None:
                raise ValueError("this U-Net needs `added`: the pooled prompt and the sizes of the image")
            pixels = sinusoids(added["sizes"], sizes.added_time_dim).reshape(len(latents), -1)
            conditions = jnp.concatenate([added["pooled"].astype(jnp.float32), pixels], axis=-1)
            embedding += Embedding(4 * widths[0], name="add_embedding")(conditions)
        prompt = prompt.astype(dtype)
        h = conv(widths[0], 3, dtype, "conv_in")(latents)
        skips = [h]
        for i, width in enumerate(widths):
            for j in range(sizes.layers_per_block[i]):
                h = self._res_block(width, f"down_blocks_{i}_resnets_{j}")(h, embedding)
                if sizes.attends[i]:
                    h = self._transformer(i, f"down_blocks_{i}_attentions_{j}")(h, prompt)
                skips.append(h)
            if i + 1 < len(widths):
                edges = dict(strides=(2, 2), padding=((1, 1), (1, 1)))
                h = conv(width, 3, dtype, f"down_blocks_{i}_downsample", **edges)(h)
                skips.append(h)
        h = self._res_block(widths[-1], "mid_block_resnets_0")(h, embedding)
        h = self._transformer(len(widths) - 1, "mid_block_attentions_0")(h, prompt)
        h = self._res_block(widths[-1], "mid_block_resnets_1")(h, embedding)
        return Features(h, tuple(skips), embedding)


class Decoder(Half):
    """Up blocks, each with the skip connections of its resolution, and the last convolution."""

    @nn.compact
    def __call__(self, features: Features, prompt: Array) -> Array:
        """Return the prediction `[batch, height, width, out_channels]`, float32."""
        sizes, levels = self.sizes, len(self.sizes.block_out_channels)
        prompt, (h, rest, embedding) = prompt.astype(self.dtype), features
        skips = list(rest)
        for i in range(levels):
            level = levels - 1 - i
            width = sizes.block_out_channels[level]
            for j in range(sizes.layers_per_block[level] + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._res_block(width, f"up_blocks_{i}_resnets_{j}")(h, embedding)
                if sizes.attends[level]:
                    h = self._transformer(level, f"up_blocks_{i}_attentions_{j}")(h, prompt)
            if level:
                h = conv(width, 3, self.dtype, f"up_blocks_{i}_upsample")(doubled(h))
        norm = GroupNorm(sizes.norm_groups, epsilon=sizes.norm_eps, activation=nn.silu, name="conv_norm_out")
        last = conv(sizes.out_channels, 3, jnp.float32, "conv_out", kernel_init=nn.initializers.zeros)
        return last(norm(h))
