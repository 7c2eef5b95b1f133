"""Flag for programs that read a model unlearned in another workdir."""

from absl import flags

UNLEARNED = flags.DEFINE_string(
    "unlearned",
    None,
    "Folder of the unlearned model; for `evaluate`, also a checkpoint file. Default: the one in the workdir; "
    "for `filter`, the original model.",
)
