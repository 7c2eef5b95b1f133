"""Flag for programs that write a file or folder outside their workdir."""

from absl import flags

OUTPUT = flags.DEFINE_string("output", None, "File of the results as JSON; for `filter`, its file or folder.")
