"""`python -m benchmarks NAME …`: runs `main` of the module of that name in this folder."""

import importlib
import sys
from collections.abc import Sequence

from l2l_jax.cli.common import run_program
from l2l_jax.errors import UserError

NAMES = ("bank", "budget", "data", "features", "peer", "products", "rehearsal", "step", "traffic")


def main(argv: Sequence[str]) -> None:
    """Run the benchmark that the command line names."""
    if len(argv) < 2 or argv[1] not in NAMES:
        raise UserError(f"Which benchmark? python -m benchmarks {' | '.join(NAMES)} [--help]")
    importlib.import_module(f"benchmarks.{argv[1]}").main(argv[1:])


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv))
