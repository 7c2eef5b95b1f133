"""The program: `python -m l2l_jax.main --config=configs/digits_mae.py`."""

import errno
import logging
import pathlib
import signal
import sys
from collections.abc import Sequence

from absl import flags
from absl import logging as absl_logging
from ml_collections import config_flags

from l2l_jax.errors import UserError
from l2l_jax.process import keep_freed_memory

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Recipe of the run, a file in configs/; --config.FIELD=VALUE changes a field."
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run: checkpoints, scalars, report. Default: runs/<recipe>."
)


def run_from_flags(argv: Sequence[str]) -> None:
    """Run the experiment that the parsed flags ask for and print its table."""
    if len(argv) > 1:
        raise UserError(f"Unexpected argument {argv[1]!r}: flags start with two dashes.")
    if CONFIG.value is None:
        raise UserError("Which recipe? Try --config=configs/digits_mae.py")
    recipe = pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"]))
    workdir = pathlib.Path(WORKDIR.value or pathlib.Path("runs") / recipe.stem)

    from l2l_jax.config import parse_config  # after the flags: a mistyped flag answers at once

    config = parse_config(CONFIG.value)
    from l2l_jax import experiment
    from l2l_jax.evaluation.report import table

    report = experiment.run(config, workdir)
    print(table(report))
    print(f"\nReport: {workdir / 'report' / 'report.html'}")


def explain(error: OSError) -> str | None:
    """One sentence for an operating-system error that the user can mend, or None."""
    place = error.filename or "the workdir"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"The disk is full: {place} could not be written. Free some space and run the same "
            "command again; complete checkpoints are intact and it goes on from the newest."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"No permission to write {place}. Choose a --workdir that you own."
    return None


def main(argv: Sequence[str] = sys.argv) -> int:
    """Parse flags and run; the exit code is 0, 1 (user's mistake) or 128 + signal number."""
    keep_freed_memory()
    _log_plain_lines()
    try:
        positional = flags.FLAGS(list(argv))
        run_from_flags(positional)
    except UserError as error:
        return _fail(str(error))
    except flags.Error as error:
        return _fail(str(error))
    except OSError as error:
        sentence = explain(error)
        if sentence is None:
            raise
        return _fail(sentence)
    except Exception as error:
        from l2l_jax.training.loop import Interrupted

        if not isinstance(error, Interrupted):
            raise
        name = signal.Signals(error.signal_number).name
        print(f"{name}: {error}; the state is saved. Run the same command to go on.", file=sys.stderr)
        return 128 + error.signal_number
    return 0


def _fail(message: str) -> int:
    print(f"Error: {message}", file=sys.stderr)
    return 1


def _log_plain_lines() -> None:
    """Show what this package logs, as plain lines; other packages only when they warn."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("l2l_jax")
    logger.setLevel(logging.INFO)
    logger.handlers = [handler]
    logger.propagate = False
    absl_logging.set_verbosity(absl_logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
