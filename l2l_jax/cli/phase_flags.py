"""Flags for programs that analyze a config's training step."""

from absl import flags

from l2l_jax.cli.output_flag import OUTPUT as OUTPUT

LAYOUTS = flags.DEFINE_list(
    "layouts", [], "Meshes as DATAxFSDP, and pmap, e.g. 8x1,4x2,pmap. Default: several for all devices."
)
STAGE = flags.DEFINE_string(
    "stage", "unlearn", "Training phase: unlearn, or pretrain.NAME with the name of a pretraining phase."
)
