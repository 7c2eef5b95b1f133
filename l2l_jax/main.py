"""Unlearn, evaluate and report: `python -m l2l_jax.main --config=configs/digits_mae.py`.

You can stop the run at any time; rerun the same command, or one with only its --workdir, to resume.
"""

import sys
from collections.abc import Sequence

from absl import flags

from l2l_jax.cli.common import load_config, parse_flags, run_program, show

REDO = flags.DEFINE_bool(
    "redo", False, "Replace results in --workdir of another config, other images or another original model."
)


def main(argv: Sequence[str]) -> None:
    """Run the experiment given on the command line and print its table of metrics."""
    raw, workdir = parse_flags(argv)
    config = load_config(raw)
    # Imported late to report a mistyped flag immediately.
    from l2l_jax.experiment import pipeline as experiment
    from l2l_jax.report.tables import console

    report = experiment.run(config, workdir, redo=REDO.value)
    show(f"{console(report)}\n\nReport: {workdir / 'report' / 'report.html'}")


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv))
