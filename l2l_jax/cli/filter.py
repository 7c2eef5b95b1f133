"""Filter the outputs of a served model, after FAST (arXiv 2312.14895).

    l2l-jax filter fit --config=configs/fashion_mae.py --output=filter.safetensors
    l2l-jax filter apply --config=configs/fashion_mae.py --filter=filter.safetensors --input=IN --output=OUT

`fit` fits the filter configured by config.filter, evaluates it on test images and, with config.audit.enabled,
attacks it. `apply` copies the images that pass, and writes decisions.csv. The input of a filter with encoder
features is the model's input; that of other filters is the model's output. A filter is not unlearning: the
weights still contain the knowledge.
"""

import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from l2l_jax.cli.common import HELP, HelpRequested, load_config, parse_flags, run_program, show
from l2l_jax.cli.output_flag import OUTPUT  # noqa: F401  (defines the flag)
from l2l_jax.cli.unlearned_flag import UNLEARNED
from l2l_jax.errors import UserError

flags.DEFINE_string("filter", None, "With apply: file of the filter.")
flags.DEFINE_string("input", None, "With apply: folder of images.")
ACTION = flags.DEFINE_enum(
    "action", "refuse", ["refuse", "blur"], "With apply: leave out images that do not pass, or blur them."
)


def main(argv: Sequence[str]) -> None:
    """Fit or apply a filter and print the results."""
    if HELP & set(argv):
        raise HelpRequested
    command = argv[1] if len(argv) > 1 else ""
    if command not in ("fit", "apply"):
        raise UserError(f"Expected `l2l-jax filter fit …` or `l2l-jax filter apply …`, not {command!r}.")
    raw, workdir = parse_flags([argv[0], *argv[2:]])
    paths = {}
    for name in ("output",) if command == "fit" else ("output", "filter", "input"):
        value = flags.FLAGS[name].value
        if not value:
            raise UserError(f"`l2l-jax filter {command}` needs --{name}; see --help.")
        paths[name] = pathlib.Path(str(value))
    config, output = load_config(raw), paths["output"]
    from l2l_jax.experiment import filtering  # imported late to report a mistyped flag immediately

    if command == "fit":
        report = filtering.run_fit(config, workdir, output, UNLEARNED.value)
        show(f"{filtering.format_report(report)}\n\nFilter: {output}")
        return
    counts = filtering.run_apply(config, paths, ACTION.value, workdir, UNLEARNED.value)
    text = ", ".join(f"{name}: {count}" for name, count in counts.items())
    show(f"{text}\n\nDecisions: {output / 'decisions.csv'}")


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv))
