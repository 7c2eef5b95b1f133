"""Palette's encoder in PyTorch, for `benchmarks.peer`.

Written for this comparison as idiomatic PyTorch: modules of `torch.nn`, channels first, SDPA attention.
Modules are named as in the original state dict (`l2l_jax.models.palette.convert`).
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flax import traverse_util
from torch import nn
from torch.nn import functional

from l2l_jax.models.mapping import to_torch
from l2l_jax.models.palette.convert import UNET
from l2l_jax.models.palette.diffusion import cumulative_gammas
from l2l_jax.models.palette.model import Palette
from l2l_jax.models.palette.unet import UNetConfig


def _norm(config: UNetConfig, channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(config.norm_groups, channels, eps=1e-5)


class _ResBlock(nn.Module):
    def __init__(self, config: UNetConfig, before: int, channels: int, down: bool = False):
        super().__init__()
        wide = 4 * config.inner_channel
        self.in_layers = nn.Sequential(
            _norm(config, before), nn.SiLU(), nn.Conv2d(before, channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(wide, 2 * channels))
        self.out_layers = nn.Sequential(
            _norm(config, channels), nn.SiLU(), nn.Identity(), nn.Conv2d(channels, channels, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if before == channels else nn.Conv2d(before, channels, 1)
        self.resample = nn.AvgPool2d(2) if down else nn.Identity()

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        h = self.in_layers[2](self.resample(self.in_layers[:2](x)))
        scale, shift = self.emb_layers(embedding)[..., None, None].chunk(2, dim=1)
        h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        return self.skip_connection(self.resample(x)) + h


class _Attention(nn.Module):
    def __init__(self, config: UNetConfig, channels: int):
        super().__init__()
        self.heads = channels // config.num_head_channels
        self.norm = _norm(config, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2)
        heads = self.qkv(self.norm(tokens)).unflatten(1, (self.heads, 3, -1)).transpose(-1, -2)
        out = functional.scaled_dot_product_attention(*heads.unbind(2))
        return x + self.proj_out(out.transpose(-1, -2).flatten(1, 2)).view_as(x)


class UNetEncoder(nn.Module):
    """γ embedding, input blocks and middle block with the sizes of `config`, for images with `channels`."""

    def __init__(self, config: UNetConfig, channels: int):
        super().__init__()
        width, wide = config.inner_channel, 4 * config.inner_channel
        self._half = width // 2
        self.cond_embed = nn.Sequential(nn.Linear(width, wide), nn.SiLU(), nn.Linear(wide, wide))
        now = config.channel_mults[0] * width
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(2 * channels, now, 3, padding=1)])])
        for level, mult in enumerate(config.channel_mults):
            for _ in range(config.res_blocks):
                block = [_ResBlock(config, now, mult * width)]
                now = mult * width
                if 2**level in config.attn_res:
                    block.append(_Attention(config, now))
                self.input_blocks.append(nn.ModuleList(block))
            if level + 1 < len(config.channel_mults):
                self.input_blocks.append(nn.ModuleList([_ResBlock(config, now, now, down=True)]))
        self.middle_block = nn.ModuleList(
            [_ResBlock(config, now, now), _Attention(config, now), _ResBlock(config, now, now)]
        )

    def forward(self, x: torch.Tensor, gamma: torch.Tensor) -> list[torch.Tensor]:
        """Map `[batch, 2 · channel, height, width]` and `[batch]` to the feature maps of all input blocks and
        of the middle block."""
        frequency = torch.exp(-math.log(10000) * torch.arange(self._half) / self._half)
        angle = gamma[:, None] * frequency
        embedding = self.cond_embed(torch.cat([angle.cos(), angle.sin()], dim=-1))
        features = []
        for block in (*self.input_blocks, self.middle_block):
            for layer in block:
                x = layer(x, embedding) if isinstance(layer, _ResBlock) else layer(x)
            features.append(x)
        return features


class PaletteEncoder:
    """`UNetEncoder` with the sizes of `model`, and Palette's T."""

    name = "our U-Net"

    def __init__(self, model: Palette):
        self.network = UNetEncoder(model.unet, model.channels)
        self._masks = torch.from_numpy(np.array(model.derived_parts()["holes"])).to(
            torch.get_default_device()
        )
        self._gammas = torch.tensor(cumulative_gammas(model.betas), dtype=torch.float32)

    def state_dict(self, ours: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """Convert the JAX encoder's parameters by path to the weights of `network`."""
        params = {"encoder": traverse_util.unflatten_dict(dict(ours), sep="/")}
        return {key: torch.from_numpy(value) for key, value in to_torch(UNET, params).items()}

    def draw(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Sample the random inputs of T for these images."""
        rows = len(images)
        t = torch.randint(1, len(self._gammas), (rows,))
        mask, turned = self._masks[torch.randint(len(self._masks), (rows,))], torch.rand(rows, 1, 1) < 0.5
        return {
            "mask": torch.where(turned, mask.mT, mask),
            "gamma": torch.lerp(self._gammas[t - 1], self._gammas[t], torch.rand(rows)),
            "filling": torch.randn_like(images),
            "noise": torch.randn_like(images),
        }

    def inputs(self, images: Mapping[str, torch.Tensor], retain: Any, forget: Any) -> tuple[Any, Any]:
        """Return the inputs of student and teacher, given the random inputs for retain and forget images.

        For forget images, the teacher receives pure noise inside the mask.
        """
        draw = {key: torch.cat([retain[key], forget[key]]) for key in retain}
        pixels, mask = torch.cat([images["retain"], images["forget"]]), draw["mask"][:, None]
        gamma = draw["gamma"][:, None, None, None]
        noisy = gamma.sqrt() * pixels + (1 - gamma).sqrt() * draw["noise"]
        of_noise = torch.cat([noisy[: len(noisy) // 2], forget["noise"]])
        condition = torch.where(mask, draw["filling"], pixels)
        student, teacher = (
            (torch.cat([condition, torch.where(mask, inside, pixels)], dim=1), draw["gamma"])
            for inside in (noisy, of_noise)
        )
        return student, teacher

    def features(self, network: Any, inputs: Any) -> list[torch.Tensor]:
        """Compute the encoder's features for one result of `inputs`."""
        return network(*inputs)
