"""Entry point of `python -m l2l_jax.evaluate`. `l2l_jax.evaluate()` is the function in `l2l_jax.api`."""

import sys

from l2l_jax.cli.common import run_program
from l2l_jax.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv))
