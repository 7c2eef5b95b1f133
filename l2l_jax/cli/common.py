"""Shared flags, process handling and exit codes of all programs."""

import argparse
import contextlib
import inspect
import io
import logging
import pathlib
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from absl import flags
from absl import logging as absl_logging

from l2l_jax import config_files
from l2l_jax.cli.failures import end_broken_pipe, explain, explanation, output_is_broken
from l2l_jax.config_files import RawConfig
from l2l_jax.errors import Interrupted, UserError
from l2l_jax.utils import distributed, runtime
from l2l_jax.utils.progress import LineHandler
from l2l_jax.utils.stopping import raising_signals
from l2l_jax.utils.text import printable_lines

if TYPE_CHECKING:
    from l2l_jax.config import Config

CONFIG = flags.DEFINE_string(
    "config",
    None,
    "Config of the run: a file, FILE:VARIANT, or the name of a config of the package. Default: the config of "
    "the run in --workdir. --config.SECTION.FIELD=VALUE sets a field; `l2l-jax config` lists them.",
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run: checkpoints, metrics, report. Default: runs/<name of the config>."
)
COMPILE_CACHE = flags.DEFINE_bool(
    "compile_cache", False, "Store compiled programs in your cache folder, so later runs start faster."
)

PROCESSES = flags.FlagValues()  # parsed first: they determine which process reports errors in other flags
flags.DEFINE_bool(
    "distributed",
    None,
    "Whether this is one of several processes. Default: detected from the cluster, if any.",
    flag_values=PROCESSES,
)
flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, without a cluster.", flag_values=PROCESSES)
flags.DEFINE_integer("num_processes", None, "Number of processes.", flag_values=PROCESSES)
flags.DEFINE_integer("process_id", None, "Index of this process, from 0.", flag_values=PROCESSES)
flags.DEFINE_integer(
    "start_timeout", 300, "Seconds to wait for all processes to start.", lower_bound=1, flag_values=PROCESSES
)
flags.DEFINE_integer(
    "heartbeat_timeout",
    60,
    "Seconds without a heartbeat after which a process counts as lost.",
    lower_bound=5,
    flag_values=PROCESSES,
)
flags.FLAGS.append_flag_values(PROCESSES)

HELP = {"--help", "-help", "-h", "--helpfull", "--helpshort"}


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UserErrors and keeps the line breaks of descriptions."""

    def __init__(self, **kwargs: Any):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raise a UserError."""
        raise UserError(f"{message[:1].upper()}{message[1:]}. See --help.")


class HelpRequested(Exception):
    """A request for help on the command line."""


def parse_flags(
    argv: Sequence[str], needs_config: Callable[[], bool] = lambda: True
) -> tuple[RawConfig, pathlib.Path]:
    """Return the config and the workdir given on the command line.

    `needs_config` is called after the flags are parsed; if it returns False, a missing config is empty.

    Raises:
      UserError: A flag is unknown, or the config cannot be read.
    """
    if HELP & set(argv):
        raise HelpRequested
    with together():
        return _parse_flags(argv, needs_config)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Make the block succeed in all processes or in none; with a single process, do not import JAX."""
    if distributed.place()[1] == 1:
        yield
        return
    from l2l_jax.utils.multihost import barrier

    with barrier():
        yield


def _parse_flags(argv: Sequence[str], needs_config: Callable[[], bool]) -> tuple[RawConfig, pathlib.Path]:
    rest, overrides = config_files.split_overrides(argv)
    try:
        extra = flags.FLAGS(rest)[1:]
    except flags.Error as error:
        raise UserError(str(error)) from error
    if extra:
        raise UserError(f"Unexpected argument {extra[0]!r}: flags start with two dashes.")
    if "://" in (WORKDIR.value or ""):
        raise UserError(f"--workdir={WORKDIR.value} is not a local folder; mount it or name another folder.")
    if CONFIG.value is not None:
        raw = config_files.read_config(CONFIG.value)
    elif needs_config():
        raw = _raw_config_of_run()
    else:
        return {}, pathlib.Path(WORKDIR.value or "runs/folders")
    if COMPILE_CACHE.value:
        runtime.keep_compiled_programs()
    raw = config_files.override(raw, overrides)
    workdir = workdir_of_flags()
    assert workdir is not None
    return raw, workdir


def _raw_config_of_run() -> RawConfig:
    """Return the config of the earlier run in --workdir."""
    if WORKDIR.value is None:
        raise UserError(
            "--config is required, for example --config=configs/digits_mae.py; or name the --workdir of an "
            "earlier run to repeat or resume it."
        )
    stored = config_files.stored_config(pathlib.Path(WORKDIR.value))
    if stored is None:
        raise UserError(
            f"--workdir={WORKDIR.value} holds no earlier run: name a config with --config, such as "
            "--config=configs/digits_mae.py."
        )
    from l2l_jax.config import upgrade  # imports JAX, which is not needed if --config is given

    return upgrade(stored)


def workdir_of_flags() -> pathlib.Path | None:
    """Return the workdir given by the flags, or None if they are not parsed yet or do not name one."""
    if not flags.FLAGS.is_parsed():
        return None
    if WORKDIR.value is not None:
        return pathlib.Path(WORKDIR.value)
    return pathlib.Path("runs") / config_files.run_name(CONFIG.value) if CONFIG.value is not None else None


def show(text: str) -> None:
    """Print results in the primary process only."""
    if distributed.place()[0] == 0:
        print(text)


def load_config(raw: RawConfig) -> "Config":
    """Start JAX and return the validated config; it fails in all processes or in none.

    Raises:
      UserError: A field does not exist or has an invalid value, or JAX finds no device.
    """
    runtime.check_backend()
    runtime.return_memory_after_compiling()
    from l2l_jax.config import parse_config

    with together():
        return parse_config(raw)


def run_program(program: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int:
    """Join the other processes of the run, if any, call `program` and turn exceptions into an exit code.

    `program` is called with `argv` without the process flags, and may return an exit code. A process that
    fails alone exits immediately instead of returning, with code 1, or `distributed.LOST` if another process
    was lost; otherwise, the processes would wait for each other to exit.

    Returns:
      0, or the result of `program`; 1 for a UserError; 128 + signal number if the run was asked to stop.
      Other exceptions are bugs and are raised with their traceback.
    """
    if not HELP & set(argv):
        runtime.tune_malloc()

    def joined() -> int | None:
        try:
            return program(argv if HELP & set(argv) else _join_processes(argv))
        except HelpRequested:
            print(usage(program))
            return 0

    return _guard(joined)


def run_command(command: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int:
    """Call a command that runs in a single process on given files, and return its exit code.

    `argv` is the command line without the program's name.
    """

    def checked() -> int | None:
        try:
            return command(argv)
        except BrokenPipeError:
            raise
        except OSError as error:
            message = f"{error.filename or 'A file'} cannot be read or written ({error.strerror or error})."
            raise UserError(explain(error) or message) from error

    return _guard(checked)


def _guard(call: Callable[[], int | None]) -> int:
    """Return the exit code of a call, and print a message if it raises an exception."""
    _log_plain_lines()
    if isinstance(sys.stdout, io.TextIOWrapper):  # like stderr, escape what the locale cannot encode
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with raising_signals():
            code = call()
        sys.stdout.flush()
    except BrokenPipeError as error:
        return end_broken_pipe() if output_is_broken() else _failed(error)
    except (KeyboardInterrupt, Interrupted) as error:
        number = getattr(error, "signal_number", signal.SIGINT)
        done = f"{error}; the state is saved" if isinstance(error, Interrupted) else "stopped"
        message = f"{signal.Signals(number).name}: {done}. Run the same command to resume."
        _report(message, known_to_all=isinstance(error, Interrupted))
        return 128 + number
    except Exception as error:
        return _failed(error)
    return code or 0


def usage(program: Callable) -> str:
    """Return the text of `--help`: the docstring of the program's module, and the flags of the package."""
    lines = [(inspect.getmodule(program).__doc__ or "").strip(), "", "Flags:"]
    for module, defined in flags.FLAGS.flags_by_module_dict().items():
        if module.startswith("absl"):
            continue
        for flag in defined:
            default = "" if flag.default in (None, []) else f" (default: {flag.default_as_str})"
            lines.append(f"  --{flag.name}: {flag.help}{default}")
    return "\n".join(lines)


def _join_processes(argv: Sequence[str]) -> list[str]:
    """Start JAX as one of several processes if flags or the cluster request it; return the other flags."""
    try:
        rest = PROCESSES(list(argv), known_only=True)
    except flags.Error as error:
        raise UserError(str(error)) from error
    if distributed.start(distributed.Launch(**PROCESSES.flag_values_dict())):  # one logs, the others warn
        (index, count), logger = distributed.place(), logging.getLogger("l2l_jax")
        if index == 0:
            logger.info("%d processes", count)
        else:
            logger.setLevel(logging.WARNING)
            logger.handlers[0].setFormatter(logging.Formatter(f"[process {index} of {count}] %(message)s"))
    return rest


def _failed(error: Exception) -> int:
    """Print a message about an exception and return the exit code; re-raise the exception if it is a bug."""
    several = distributed.place()[1] > 1
    known_to_all = getattr(error, "known_to_all", False)
    message, code = explanation(error, workdir_of_flags())
    if message is None:
        if not several or known_to_all:
            raise error
        traceback.print_exception(error)
        distributed.end(1)
    _report(f"Error: {message}", known_to_all=known_to_all)
    if several and not known_to_all:
        distributed.end(code)
    return code


def _report(message: str, *, known_to_all: bool) -> None:
    """Print a line on stderr; if the error is known to all processes, only one of them prints it."""
    index, count = distributed.place()
    if index == 0 or not known_to_all:
        prefix = f"[process {index} of {count}] " if count > 1 and not known_to_all else ""
        with contextlib.suppress(OSError):  # stderr may be closed
            print(prefix + printable_lines(message), file=sys.stderr)


def _log_plain_lines() -> None:
    """Print the log messages of this package as plain lines, and suppress those of Orbax."""
    handler = LineHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("l2l_jax")
    logger.setLevel(logging.INFO)
    logger.handlers = [handler]
    logger.propagate = False
    absl_logging.set_verbosity(absl_logging.FATAL)  # relevant errors are raised
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # so are relevant errors of TensorStore's reads
