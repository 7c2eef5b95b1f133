"""The flag of the programs that look at a model unlearned elsewhere."""

from absl import flags

UNLEARNED = flags.DEFINE_string(
    "unlearned",
    None,
    "Folder of the unlearned model, or for evaluating its checkpoint file. Default: the one in the workdir; "
    "of `filter`, the original model.",
)
