"""What the programs share: the flags --config and --workdir, one-sentence errors, exit codes."""

import errno
import logging
import os
import pathlib
import re
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags
from absl import logging as absl_logging
from ml_collections import config_flags

from l2l_jax.errors import Interrupted, UserError
from l2l_jax.process import keep_freed_memory

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Recipe of the run, a file in configs/; --config.FIELD=VALUE changes a field."
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run: checkpoints, scalars, report. Default: runs/<recipe>."
)


def parse_flags(argv: Sequence[str]) -> tuple[Any, pathlib.Path]:
    """The recipe and the workdir that the command line asks for.

    Raises:
      UserError: an unknown flag or field, a value of the wrong type, or a recipe that is not there.
    """
    try:
        extra = flags.FLAGS(list(argv))[1:]
        if extra:
            raise UserError(f"Unexpected argument {extra[0]!r}: flags start with two dashes.")
        if not flags.FLAGS["config"].present:
            raise UserError("Which recipe? Try --config=configs/digits_mae.py")
    except flags.Error as error:
        raise UserError(str(error)) from error
    except (AttributeError, KeyError) as error:  # how ml_collections reports an unknown field
        names = re.findall(r"[\"'](\w+)[\"'\\]", str(error.args[0]))
        near = f" Did you mean {names[1]}?" if len(names) > 1 else ""
        raise UserError(f"The recipe has no field {names[0]}.{near}") from error
    path = pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"]))
    if not path.is_file():
        known = ", ".join(sorted(str(recipe) for recipe in path.parent.glob("*.py"))) or "none"
        raise UserError(f"--config={path}: no such file. Recipes in that folder: {known}.")
    return CONFIG.value, pathlib.Path(WORKDIR.value or pathlib.Path("runs") / path.stem)


def run_program(program: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    """Call `program(argv)` and turn what it raises into a sentence and an exit code.

    Returns:
      0; 1 for a mistake of the user's; 128 + signal number if it was asked to stop. Other exceptions
      pass through: they are bugs, and their traceback is wanted.
    """
    keep_freed_memory()
    _log_plain_lines()
    try:
        program(argv)
    except UserError as error:
        return _fail(str(error))
    except Interrupted as error:
        name = signal.Signals(error.signal_number).name
        print(f"{name}: {error}; the state is saved. Run the same command to go on.", file=sys.stderr)
        return 128 + error.signal_number
    except (OSError, ValueError) as error:
        sentence = explain(error)
        if sentence is None:
            raise
        return _fail(sentence)
    return 0


def explain(error: OSError | ValueError) -> str | None:
    """One sentence for a failure of the disk, or None if it is something else.

    TensorStore, which writes the checkpoints, reports the operating system's errors as ValueErrors.
    """
    text = str(error)
    place = getattr(error, "filename", None) or _place(text) or "the workdir"
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in text:
        return (
            f"The disk is full: {place} could not be written. Free some space and run the same "
            "command again; complete checkpoints are intact and it goes on from the newest."
        )
    for known in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR):
        if number == known or (number is None and os.strerror(known) in text):
            reason = os.strerror(known)
            return f"{place} cannot be made or written ({reason}). Choose another --workdir."
    return None


def _place(text: str) -> str | None:
    """The first file that a message of TensorStore names."""
    match = re.search(r'"(/[^"]+?)(\.orbax-checkpoint-tmp|/?")', text)
    return match.group(1) if match else None


def _fail(message: str) -> int:
    print(f"Error: {message}", file=sys.stderr)
    return 1


def _log_plain_lines() -> None:
    """Show what this package logs, as plain lines, and nothing that Orbax does."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("l2l_jax")
    logger.setLevel(logging.INFO)
    logger.handlers = [handler]
    logger.propagate = False
    absl_logging.set_verbosity(absl_logging.FATAL)  # what matters of them is raised, and told once
