"""Unlearn, evaluate and report: `python -m l2l_jax.main --config=configs/digits_mae.py`.

You can stop the run at any time; run the same command again, or only with its --workdir, to resume.
"""

import sys
from collections.abc import Sequence

from absl import flags

from l2l_jax.cli.common import load_config, parse_flags, run_program, show

REDO = flags.DEFINE_bool(
    "redo", False, "Replace what another config, other images or another original have made in --workdir."
)


def main(argv: Sequence[str]) -> None:
    """Run the experiment that the command line asks for and print its table."""
    raw, workdir = parse_flags(argv)
    config = load_config(raw)
    # Imported late, to answer a mistyped flag at once.
    from l2l_jax.experiment import pipeline as experiment
    from l2l_jax.report.tables import console

    report = experiment.run(config, workdir, redo=REDO.value)
    show(f"{console(report)}\n\nReport: {workdir / 'report' / 'report.html'}")


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv))
