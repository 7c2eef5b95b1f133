"""Command line of the benchmarks: `python -m benchmarks NAME …` runs `main` of the module NAME."""

import importlib
import sys
from collections.abc import Sequence

from l2l_jax.cli.common import run_program
from l2l_jax.errors import UserError

NAMES = (
    "bank",
    "budget",
    "data",
    "features",
    "peer",
    "products",
    "rehearsal",
    "retraining",
    "step",
    "traffic",
)


def main(argv: Sequence[str]) -> None:
    """Run the benchmark named on the command line."""
    if len(argv) < 2 or argv[1] not in NAMES:
        names = " | ".join(NAMES)
        raise UserError(f"The name of a benchmark is required: python -m benchmarks {names} [--help]")
    importlib.import_module(f"benchmarks.{argv[1]}").main(argv[1:])


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv))
