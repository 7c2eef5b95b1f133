"""Checkpoint formats of Palette's `Network` (Janspiry; Li et al. 2024) and of its U-Net alone.

A saved `Network` holds the U-Net under the prefix `denoise_fn.`, six buffers of its noise schedule and, if it
was saved during unlearning, the frozen original under `teacher_denoise_fn.`. Exported files have no teacher.
Neither format holds the model's mask bank.
"""

import numpy as np

from l2l_jax.models import mapping
from l2l_jax.models.mapping import CheckpointFormat, Constant, Fields, StateDict, Table, count, shape_of
from l2l_jax.models.palette.diffusion import schedule_buffers

STUDENT, TEACHER = "denoise_fn.", "teacher_denoise_fn."

BLOCKS = {
    "encoder/input_blocks_{i}_{j}": "input_blocks.{i}.{j}",
    "encoder/middle_block_{j}": "middle_block.{j}",
    "decoder/output_blocks_{i}_{j}": "output_blocks.{i}.{j}",
}
LAYERS = dict(in_norm="in_layers.0", in_conv="in_layers.2", emb="emb_layers.1", out_norm="out_layers.0")
LAYERS |= dict(out_conv="out_layers.3", skip="skip_connection", norm="norm")
"""Layers of residual blocks and of attention; a name in a block may refer to either."""

UNET = Table(
    {f"{block}/{layer}": f"{BLOCKS[block]}.{name}" for block in BLOCKS for layer, name in LAYERS.items()}
    | {
        f"{block}/{layer}": (f"{BLOCKS[block]}.{layer}", mapping.conv1x1_1d)
        for block in BLOCKS
        for layer in ("qkv", "proj_out")
    }
    | {
        "encoder/input_blocks_0_0": "input_blocks.0.0",
        "encoder/cond_embed/dense_0": "cond_embed.0",
        "encoder/cond_embed/dense_1": "cond_embed.2",
        "decoder/out_norm": "out.0",
        "decoder/out_conv": "out.2",
    }
)
"""Names of the U-Net alone."""

HINT = "Set schedule, timesteps, linear_start and linear_end to what the checkpoint was saved with."


def _buffer(name: str) -> Constant:
    return Constant(name, lambda model: schedule_buffers(model.betas)[name], HINT, rtol=1e-4, exact=True)


TABLE = Table(
    {
        flax: STUDENT + given if isinstance(given, str) else (STUDENT + given[0], given[1])
        for flax, given in UNET.names.items()
    },
    tuple(_buffer(name) for name in schedule_buffers(np.full(1, 0.5))),
)


class Format(CheckpointFormat):
    """Checkpoints of a `Network` or of its U-Net alone."""

    table = TABLE
    published = {"palette_256": {}}
    hidden = ("image_size", "num_head_channels")

    def recognize(self, state_dict: StateDict) -> bool:
        return any(key.removeprefix(STUDENT).startswith("input_blocks.0.0.") for key in state_dict)

    def unwrap(self, state_dict: StateDict) -> StateDict:
        """Drop the teacher, and rename the keys of a U-Net alone as in a `Network`."""
        if not any(key.startswith(STUDENT) for key in state_dict):
            return {f"{STUDENT}{key}": value for key, value in state_dict.items()}
        return {key: value for key, value in state_dict.items() if not key.startswith(TEACHER)}

    def sizes(self, state_dict: StateDict) -> Fields:
        _, inner = shape_of(state_dict, f"{STUDENT}cond_embed.0.weight", 2)
        blocks = count(state_dict, f"{STUDENT}output_blocks.{{i}}.")
        # The output blocks of every level except the last end with an upsampling block.
        levels = 1 + sum(
            any(f"{STUDENT}output_blocks.{i}.{j}.in_layers.2.weight" in state_dict for j in (1, 2))
            for i in range(blocks)
        )
        per_level = blocks // levels
        first = [f"{STUDENT}input_blocks.{1 + level * per_level}" for level in range(levels)]
        widths = [shape_of(state_dict, f"{block}.0.out_layers.3.weight", 4)[0] for block in first]
        attended = [level for level, block in enumerate(first) if f"{block}.1.qkv.weight" in state_dict]
        return dict(
            inner_channel=inner,
            channel_mults=tuple(width // inner for width in widths),
            res_blocks=per_level - 1,
            attn_res=tuple(2**level for level in attended),
            channels=shape_of(state_dict, f"{STUDENT}out.2.weight", 4)[0],
        )
