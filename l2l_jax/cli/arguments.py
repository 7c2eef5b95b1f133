"""Command lines of subcommands and files, read by argparse."""

import argparse
from typing import Any, NoReturn

from l2l_jax.errors import UserError


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are UserErrors; descriptions keep their lines."""

    def __init__(self, **kwargs: Any):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raise a UserError."""
        raise UserError(f"{message[:1].upper()}{message[1:]}. See --help.")
