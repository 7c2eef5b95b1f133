"""Checkpoints of Palette's `Network` (Janspiry; Li et al. 2024), and of the bare U-Net in it.

A saved `Network` holds the U-Net behind `denoise_fn.`, six buffers of its noise schedule and, if it was saved
while unlearning, the frozen original behind `teacher_denoise_fn.`. Exported files have no teacher. The
model's bank of masks is in neither.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from l2l_jax.models.checkpoints import CheckpointFormat
from l2l_jax.models.mapping import (
    Constant,
    Rule,
    Table,
    conv,
    conv1x1_1d,
    count,
    dense_rules,
    linear,
    norm_rules,
    shape_of,
)
from l2l_jax.models.palette.diffusion import schedule_buffers

STUDENT, TEACHER = "denoise_fn.", "teacher_denoise_fn."


def _block_rules(torch_block: str, flax_block: str) -> list[Rule]:
    """Return the rules of a ResBlock and an attention, either of which may be in one place of a block."""
    norms = [("in_layers.0", "in_norm"), ("out_layers.0", "out_norm"), ("norm", "norm")]
    kernels = [
        ("in_layers.2", "in_conv", conv),
        ("emb_layers.1", "emb", linear),
        ("out_layers.3", "out_conv", conv),
        ("skip_connection", "skip", conv),
        ("qkv", "qkv", conv1x1_1d),
        ("proj_out", "proj_out", conv1x1_1d),
    ]
    rules = []
    for torch_name, flax_name in norms:
        rules += norm_rules(f"{torch_block}.{torch_name}", f"{flax_block}/{flax_name}")
    for torch_name, flax_name, layout in kernels:
        rules += dense_rules(f"{torch_block}.{torch_name}", f"{flax_block}/{flax_name}", layout)
    return rules


UNET = [
    *dense_rules("cond_embed.0", "encoder/cond_embed/dense_0"),
    *dense_rules("cond_embed.2", "encoder/cond_embed/dense_1"),
    *dense_rules("input_blocks.0.0", "encoder/input_blocks_0_0", conv),
    *_block_rules("input_blocks.{i}.{j}", "encoder/input_blocks_{i}_{j}"),
    *_block_rules("middle_block.{j}", "encoder/middle_block_{j}"),
    *_block_rules("output_blocks.{i}.{j}", "decoder/output_blocks_{i}_{j}"),
    *norm_rules("out.0", "decoder/out_norm"),
    *dense_rules("out.2", "decoder/out_conv", conv),
]
"""Rules of the bare U-Net."""


def _buffer(name: str) -> Constant:
    return Constant(
        name,
        lambda model: schedule_buffers(model.betas)[name],
        "Set schedule, timesteps, linear_start and linear_end to what the checkpoint was saved with.",
        rtol=1e-4,
        exact=True,
    )


TABLE: Table = [
    *(_buffer(name) for name in schedule_buffers(np.full(1, 0.5))),
    *(Rule(f"{STUDENT}{rule.torch_key}", rule.flax_path, rule.layout) for rule in UNET),
]


def recognize(state_dict: Mapping[str, Any]) -> bool:
    """Return whether the keys are those of a `Network` or of a bare U-Net."""
    return any(key.removeprefix(STUDENT).startswith("input_blocks.0.0.") for key in state_dict)


def unwrap(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the teacher, and name the keys of a bare U-Net as in a `Network`."""
    if not any(key.startswith(STUDENT) for key in state_dict):
        return {f"{STUDENT}{key}": value for key, value in state_dict.items()}
    return {key: value for key, value in state_dict.items() if not key.startswith(TEACHER)}


def sizes(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `Palette` that the shapes of a `Network` show."""
    _, inner = shape_of(state_dict, f"{STUDENT}cond_embed.0.weight", 2)
    channels = shape_of(state_dict, f"{STUDENT}out.2.weight", 4)[0]
    blocks = count(state_dict, f"{STUDENT}output_blocks.{{i}}.")
    # The output blocks of every level but the last end with a block that doubles the side.
    doubling = [
        i
        for i in range(blocks)
        if any(f"{STUDENT}output_blocks.{i}.{j}.in_layers.2.weight" in state_dict for j in (1, 2))
    ]
    levels = 1 + len(doubling)
    per_level = blocks // levels
    first = [f"{STUDENT}input_blocks.{1 + level * per_level}" for level in range(levels)]
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


FORMAT = CheckpointFormat(
    table=TABLE,
    parts=("encoder", "decoder"),
    recognize=recognize,
    sizes=sizes,
    published={"palette_256": {}},
    hidden=("image_size", "num_head_channels"),
    unwrap=unwrap,
)
