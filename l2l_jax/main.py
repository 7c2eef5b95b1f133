"""The program: `python -m l2l_jax.main --config=configs/digits_mae.py`."""

import sys
from collections.abc import Sequence

from l2l_jax.cli.common import parse_flags, run_program


def main(argv: Sequence[str]) -> None:
    """Run the experiment that the command line asks for and print its table."""
    recipe, workdir = parse_flags(argv)
    # Imported late: a mistyped flag is answered at once.
    from l2l_jax.config import parse_config
    from l2l_jax.experiment import pipeline as experiment
    from l2l_jax.report.page import table
    from l2l_jax.report.text import sentences
    from l2l_jax.utils.multihost import barrier, is_primary

    with barrier():
        config = parse_config(recipe)
    report = experiment.run(config, workdir)
    if is_primary():
        print(table(report))
        if report["audit"] is not None:
            print("\n" + "\n".join(sentences(report)))
        print(f"\nReport: {workdir / 'report' / 'report.html'}")


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv))
