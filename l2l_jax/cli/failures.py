"""Messages and exit codes for exceptions that programs raise."""

import errno
import os
import pathlib
import re
import select
import sys

from l2l_jax.errors import UserError
from l2l_jax.utils import distributed

FULL = {
    errno.ENOSPC: "The disk is full",
    errno.EDQUOT: "The disk quota is used up",
    errno.EFBIG: "A file is larger than `ulimit -f` or the disk allows",
}
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


def explanation(error: BaseException, workdir: pathlib.Path | None) -> tuple[str | None, int]:
    """Return a message for an exception, or None if its traceback is needed, and the exit code.

    `workdir` is the folder that the program writes to, if known.
    """
    if isinstance(error, UserError):
        return str(error), 1
    if distributed.is_lost_peer(error):
        reason = " ".join(str(error).split())[:200]
        return (
            "Another process of this run has ended; see its output for the reason. Start all processes again "
            f"to resume from the last checkpoint. ({reason})"
        ), distributed.LOST
    return _about_environment(error) or explain(error, workdir), 1


def _about_environment(error: BaseException) -> str | None:
    """Return a message for an invalid environment variable, which JAX reports when it is imported."""
    reason = " ".join(str(error).split())
    names = (name for name in os.environ if name.startswith("JAX_"))
    name = next((name for name in names if re.search(rf"\b{name}\b", reason, re.IGNORECASE)), None)
    if name is None or not isinstance(error, ValueError):
        return None
    return f"The environment variable {name} is {os.environ[name]!r}, which JAX rejects: {reason}."


def explain(error: BaseException, workdir: pathlib.Path | None = None) -> str | None:
    """Return a message for a file system error that a user can fix, or None.

    These are a full disk or quota, a failure to write below the workdir, and a missing permission to open a
    file. TensorStore, which writes checkpoints, reports errors of the operating system as ValueErrors.
    """
    if not isinstance(error, OSError | ValueError):
        return None
    number, path = _number(error), _path(error)
    if number in FULL:
        return (
            f"{FULL[number]}: {path or workdir or 'the workdir'} could not be written. Free some space and "
            "rerun the same command; complete checkpoints are intact, and it resumes from the newest one."
        )
    if path is None or number not in (*DENIED, errno.ENOENT, errno.ENOTDIR):
        return None
    reason = os.strerror(number)
    if workdir is not None and pathlib.Path(path).absolute().is_relative_to(workdir.absolute()):
        if os.path.exists(path) and not os.access(path, os.R_OK):
            return f"{path} cannot be read ({reason})."
        if number in DENIED or not workdir.is_dir():
            return f"{path} cannot be created or written ({reason}). Choose another --workdir."
        return None
    return f"{path} cannot be opened ({reason}): check its permissions." if number in DENIED else None


def _number(error: OSError | ValueError) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    numbers = (*FULL, *DENIED, errno.ENOENT, errno.ENOTDIR)
    return next((number for number in numbers if os.strerror(number) in str(error)), None)


def _path(error: OSError | ValueError) -> str | None:
    """Return the file named by an error; TensorStore's messages contain it in quotes."""
    if isinstance(error, OSError) and error.filename is not None:
        return os.fsdecode(error.filename)
    match = re.search(r'"(/[^"]+?)(\.orbax-checkpoint-tmp|/?")', str(error))
    return match.group(1) if match else None


def output_is_broken() -> bool:
    """Return whether the reader of standard output has closed the pipe."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
    except (AttributeError, OSError):  # the system has no poll, or sys.stdout has no file descriptor
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def end_broken_pipe() -> int:
    """Return the exit code of a program whose reader has closed the pipe, such as `| head`."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141  # 128 + SIGPIPE, as a shell would report it
