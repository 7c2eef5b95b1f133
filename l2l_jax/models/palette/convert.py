"""The state dict of Palette's U-Net and of the `Network` around it (Janspiry; Li et al. 2024).

`TABLE` names the U-Net's own keys (`input_blocks.0.0.weight`). A saved `Network` holds the same
keys behind `denoise_fn.`, six buffers of its noise schedule and, if it was saved while unlearning,
the frozen original behind `teacher_denoise_fn.`: `unet_state_dict` takes the U-Net out of it,
`network_state_dict` wraps a U-Net up again. The model's bank of masks is in neither.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from l2l_jax.errors import UserError
from l2l_jax.models.palette.diffusion import beta_schedule, schedule_buffers
from l2l_jax.models.palette.model import Palette
from l2l_jax.weights.mapping import Layout, Rule, conv, conv1x1_1d, linear, same
from l2l_jax.weights.shapes import count, shape_of

STUDENT, TEACHER = "denoise_fn.", "teacher_denoise_fn."
BUFFERS = tuple(schedule_buffers(np.full(1, 0.5)))

PUBLISHED = {"palette_256": {}}
"""Fields of `Palette` of the published models, where they differ from its defaults."""


def _weight_and_bias(torch_module: str, flax_module: str, layout: Layout = same) -> list[Rule]:
    weight = "scale" if layout is same else "kernel"
    return [
        Rule(f"{torch_module}.weight", f"{flax_module}/{weight}", layout),
        Rule(f"{torch_module}.bias", f"{flax_module}/bias"),
    ]


def _block_rules(torch_block: str, flax_block: str) -> list[Rule]:
    """The rules of whatever may stand in one place of a block: a ResBlock or an attention."""
    modules = [
        ("in_layers.0", "in_norm", same),
        ("in_layers.2", "in_conv", conv),
        ("emb_layers.1", "emb", linear),
        ("out_layers.0", "out_norm", same),
        ("out_layers.3", "out_conv", conv),
        ("skip_connection", "skip", conv),
        ("norm", "norm", same),
        ("qkv", "qkv", conv1x1_1d),
        ("proj_out", "proj_out", conv1x1_1d),
    ]
    return [
        rule
        for torch_name, flax_name, layout in modules
        for rule in _weight_and_bias(f"{torch_block}.{torch_name}", f"{flax_block}/{flax_name}", layout)
    ]


TABLE = [
    *_weight_and_bias("cond_embed.0", "encoder/cond_embed/dense_0", linear),
    *_weight_and_bias("cond_embed.2", "encoder/cond_embed/dense_1", linear),
    *_weight_and_bias("input_blocks.0.0", "encoder/input_blocks_0_0", conv),
    *_block_rules("input_blocks.{i}.{j}", "encoder/input_blocks_{i}_{j}"),
    *_block_rules("middle_block.{j}", "encoder/middle_block_{j}"),
    *_block_rules("output_blocks.{i}.{j}", "decoder/output_blocks_{i}_{j}"),
    *_weight_and_bias("out.0", "decoder/out_norm", same),
    *_weight_and_bias("out.2", "decoder/out_conv", conv),
]
"""Rules for the parts "encoder" and "decoder" of `l2l_jax.models.palette.model.Palette`."""


def unet_state_dict(state_dict: Mapping[str, np.ndarray], model: Palette) -> dict[str, np.ndarray]:
    """The U-Net's keys of a saved `Network`, as `TABLE` names them.

    The teacher, if there is one, is dropped. The schedule's buffers, if there are any, are compared
    with the model's training schedule and dropped. The state dict of a bare U-Net passes unchanged.

    Raises:
      UserError: the checkpoint was saved with another noise schedule than the model's.
    """
    if not any(key.startswith(STUDENT) for key in state_dict):
        return dict(state_dict)
    for name, expected in _buffers(model).items():
        found = state_dict.get(name)
        if found is not None and not (
            np.shape(found) == expected.shape and np.allclose(found, expected, rtol=1e-4)
        ):
            raise UserError(
                f"{name} of the checkpoint is not that of the model's training schedule "
                f"({model.schedule}, {model.timesteps} steps, {model.linear_start} to "
                f"{model.linear_end}): set schedule, timesteps, linear_start and linear_end to "
                "what the checkpoint was saved with."
            )
    unet = {k.removeprefix(STUDENT): v for k, v in state_dict.items() if k not in BUFFERS}
    return {key: value for key, value in unet.items() if not key.startswith(TEACHER)}


def network_state_dict(state_dict: Mapping[str, np.ndarray], model: Palette) -> dict[str, np.ndarray]:
    """The state dict of a `Network` with its training schedule set, from that of its U-Net.

    Its keys are exactly those of such a `Network` that has no teacher: `denoise_fn.` before every
    key of the U-Net, and the buffers gammas, sqrt_recip_gammas, sqrt_recipm1_gammas,
    posterior_log_variance_clipped, posterior_mean_coef1 and posterior_mean_coef2.
    """
    return {f"{STUDENT}{key}": value for key, value in state_dict.items()} | _buffers(model)


def _buffers(model: Palette) -> dict[str, np.ndarray]:
    return schedule_buffers(
        beta_schedule(model.schedule, model.timesteps, model.linear_start, model.linear_end)
    )


def sizes(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Palette` that the shapes of a `Network` or a bare U-Net show.

    Raises:
      UserError: an array that shows one is missing or misshapen.
    """
    prefix = STUDENT if any(key.startswith(STUDENT) for key in state_dict) else ""
    _, inner = shape_of(state_dict, f"{prefix}cond_embed.0.weight", 2)
    channels = shape_of(state_dict, f"{prefix}out.2.weight", 4)[0]
    blocks = count(state_dict, f"{prefix}output_blocks.{{i}}.")
    # A level's output blocks, all but the last level's, end with a block that doubles the side.
    doubling = [
        i for i in range(blocks)
        if any(f"{prefix}output_blocks.{i}.{j}.in_layers.2.weight" in state_dict for j in (1, 2))
    ]  # fmt: skip
    levels = 1 + len(doubling)
    per_level = blocks // levels
    first = [f"{prefix}input_blocks.{1 + level * per_level}" for level in range(levels)]
    widths = [shape_of(state_dict, f"{block}.0.out_layers.3.weight", 4)[0] for block in first]
    return dict(
        inner_channel=inner,
        channel_mults=tuple(width // inner for width in widths),
        res_blocks=per_level - 1,
        attn_res=tuple(
            2**level for level, block in enumerate(first) if f"{block}.1.qkv.weight" in state_dict
        ),
        channels=channels,
    )


def canonical(model: Palette) -> Palette:
    """`model` without those `attn_res` that no level of its U-Net has; they change nothing."""
    factors = [2**level for level in range(len(model.channel_mults))]
    return dataclasses.replace(model, attn_res=tuple(f for f in factors if f in model.attn_res))
