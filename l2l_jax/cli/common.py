"""What the programs share: flags, the processes of a run, one-sentence errors, exit codes."""

import errno
import logging
import os
import pathlib
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags
from absl import logging as absl_logging
from ml_collections import config_flags

from l2l_jax.errors import Interrupted, UserError
from l2l_jax.utils import distributed
from l2l_jax.utils.runtime import keep_compiled_programs, keep_freed_memory, share_one_arena

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Recipe of the run, FILE or FILE:VARIANT; --config.FIELD=VALUE changes a field."
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run: checkpoints, scalars, report. Default: runs/<recipe>."
)
COMPILE_CACHE = flags.DEFINE_bool(
    "compile_cache", False, "Keep compiled programs in your own cache folder: later runs start sooner."
)

PROCESSES = flags.FlagValues()  # read before the others: they decide who prints the others' mistakes
flags.DEFINE_bool(
    "distributed", None, "Whether this is one process of several. Default: as the cluster says, if any.",
    flag_values=PROCESSES,
)  # fmt: skip
flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, without a cluster.", flag_values=PROCESSES)
flags.DEFINE_integer("num_processes", None, "How many processes there are.", flag_values=PROCESSES)
flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", flag_values=PROCESSES)
flags.DEFINE_integer(
    "start_timeout", 300, "Seconds for all processes to come together.", lower_bound=1, flag_values=PROCESSES
)
flags.DEFINE_integer(
    "heartbeat_timeout", 60, "Seconds without a sign of life after which a process counts as lost.",
    lower_bound=5, flag_values=PROCESSES,
)  # fmt: skip
flags.FLAGS.append_flag_values(PROCESSES)


def _always() -> bool:
    return True


def parse_flags(argv: Sequence[str], needs_recipe: Callable[[], bool] = _always) -> tuple[Any, pathlib.Path]:
    """The recipe and the workdir that the command line asks for.

    Args:
      argv: the command line.
      needs_recipe: called when the flags are read: whether there must be a recipe. Without one, None is
        returned for it.

    Raises:
      UserError: an unknown flag or field, a value of the wrong type, or a recipe that is not there.
    """
    if distributed.place()[1] == 1:
        return _parse_flags(argv, needs_recipe)  # without JAX, so that a mistyped flag is answered at once
    from l2l_jax.utils.multihost import barrier

    with barrier():
        return _parse_flags(argv, needs_recipe)


def _parse_flags(argv: Sequence[str], needs_recipe: Callable[[], bool]) -> tuple[Any, pathlib.Path]:
    try:
        extra = flags.FLAGS(list(argv))[1:]
        if extra:
            raise UserError(f"Unexpected argument {extra[0]!r}: flags start with two dashes.")
        if not flags.FLAGS["config"].present:
            if not needs_recipe():
                return None, pathlib.Path(WORKDIR.value or pathlib.Path("runs") / "folders")
            raise UserError("Which recipe? Try --config=configs/digits_mae.py")
    except flags.Error as error:
        if "get_config() takes 0 positional arguments" in str(error):
            raise UserError("This recipe has no variants: leave out the colon and the rest.") from error
        raise UserError(str(error)) from error
    except SyntaxError as error:
        raise UserError(f"{error.filename}, line {error.lineno}: {error.msg}.") from error
    except (AttributeError, KeyError) as error:  # how ml_collections reports an unknown field
        if "get_config" in str(error):
            raise UserError("This file is not a recipe: it does not define get_config().") from error
        names = re.findall(r"[\"'](\w+)[\"'\\]", str(error.args[0]))
        if not names:  # a mistake in the recipe's own code
            raise
        near = f" Did you mean {names[1]}?" if len(names) > 1 else ""
        raise UserError(f"The recipe has no field {names[0]}.{near}") from error
    name, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    path = pathlib.Path(name)
    if not path.is_file():
        folder = path if path.is_dir() else path.parent
        known = ", ".join(sorted(str(recipe) for recipe in folder.glob("*.py"))) or "none"
        what = "a folder; name a file in it" if path.is_dir() else "no such file"
        raise UserError(f"--config={path}: {what}. Recipes in that folder: {known}.")
    if COMPILE_CACHE.value:
        keep_compiled_programs()
    share_one_arena(_image_size(CONFIG.value))
    run = f"{path.stem}_{variant}" if variant else path.stem
    return CONFIG.value, pathlib.Path(WORKDIR.value or pathlib.Path("runs") / run)


def _image_size(recipe: Any) -> int:
    """Of a recipe that nobody has checked yet; 0 where it has none."""
    try:
        return int(recipe.model.image_size)
    except (AttributeError, TypeError, ValueError):
        return 0


def run_program(program: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int:
    """Join the other processes of the run, if any, call `program` and turn what it raises into an exit code.

    Args:
      program: is given `argv` without the flags that say what processes there are; may return an exit code.
      argv: the command line.

    Returns:
      0, or what `program` returned; 1 for a mistake of the user's; 128 + signal number if it was asked to
      stop. Other exceptions pass through: they are bugs, and their traceback is wanted.

    A process that fails alone ends at once instead of returning, with 1, or `distributed.LOST` if
    another was lost: the others could not end before it, nor it before them.
    """
    keep_freed_memory()
    _log_plain_lines()
    try:
        code = program(_join_processes(argv))
    except Interrupted as error:
        name = signal.Signals(error.signal_number).name
        _tell(f"{name}: {error}; the state is saved. Run the same command to resume.", everyone_knows=True)
        return 128 + error.signal_number
    except Exception as error:
        return _failed(error)
    return code or 0


def _join_processes(argv: Sequence[str]) -> list[str]:
    """Start JAX as one of several processes if the flags or the cluster say so; the flags that are left."""
    try:
        rest = PROCESSES(list(argv), known_only=True)
    except flags.Error as error:
        raise UserError(str(error)) from error
    launch = distributed.Launch(
        PROCESSES.distributed, PROCESSES.coordinator, PROCESSES.num_processes, PROCESSES.process_id,
        PROCESSES.start_timeout, PROCESSES.heartbeat_timeout,
    )  # fmt: skip
    if distributed.start(launch):
        _log_as_one_of_several()
    return rest


def _failed(error: Exception) -> int:
    """The exit code of a program that raised `error`, after a sentence about it; raises it if it is a bug."""
    several = distributed.place()[1] > 1
    known = getattr(error, "known_to_all", False)
    sentence, code = _explanation(error, several)
    if sentence is None:
        if not several or known:
            raise error
        traceback.print_exception(error)
        distributed.end(1)
    _tell(f"Error: {sentence}", everyone_knows=known)
    if several and not known:
        distributed.end(code)
    return code


def _explanation(error: Exception, several: bool) -> tuple[str | None, int]:
    """One sentence, or None for a bug, and the exit code."""
    if isinstance(error, UserError):
        return str(error), 1
    if several and distributed.PEER_LOST.search(str(error)):
        reason = " ".join(str(error).split())[:200]
        return (
            "Another process of this run has ended; its own output says why. Start all of them again to "
            f"resume from the last checkpoint. ({reason})"
        ), distributed.LOST
    return (explain(error) if isinstance(error, OSError | ValueError) else None), 1


def _tell(message: str, *, everyone_knows: bool) -> None:
    """Print a line on stderr; what all processes know, one of them prints."""
    index, count = distributed.place()
    if index == 0 or not everyone_knows:
        own = f"[process {index} of {count}] " if count > 1 and not everyone_knows else ""
        print(own + message, file=sys.stderr)


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
            "command again; complete checkpoints are intact and it resumes from the newest."
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


def _log_plain_lines() -> None:
    """Show what this package logs, as plain lines, and nothing that Orbax does."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("l2l_jax")
    logger.setLevel(logging.INFO)
    logger.handlers = [handler]
    logger.propagate = False
    absl_logging.set_verbosity(absl_logging.FATAL)  # what matters of them is raised, and told once


def _log_as_one_of_several() -> None:
    """One process logs; the others only warn, and say who they are."""
    index, count = distributed.place()
    if index:
        logger = logging.getLogger("l2l_jax")
        logger.setLevel(logging.WARNING)
        (handler,) = logger.handlers
        handler.setFormatter(logging.Formatter(f"[process {index} of {count}] %(message)s"))
    else:
        logging.getLogger("l2l_jax").info("%d processes", count)
