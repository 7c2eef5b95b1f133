"""Sentences and exit codes for what programs raise."""

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
    """Return a sentence about what a program raised, or None if its traceback is needed, and the exit code.

    `workdir` is the folder that the program writes to, if known.
    """
    if isinstance(error, UserError):
        return str(error), 1
    if distributed.is_lost_peer(error):
        reason = " ".join(str(error).split())[:200]
        return (
            "Another process of this run has ended; its own output says why. Start all of them again to "
            f"resume from the last checkpoint. ({reason})"
        ), distributed.LOST
    return _about_environment(error) or explain(error, workdir), 1


def _about_environment(error: BaseException) -> str | None:
    """Return a sentence for a variable that JAX cannot read, which it says when it is imported."""
    reason = " ".join(str(error).split())
    names = (name for name in os.environ if name.startswith("JAX_"))
    name = next((name for name in names if re.search(rf"\b{name}\b", reason, re.IGNORECASE)), None)
    if name is None or not isinstance(error, ValueError):
        return None
    return f"The environment variable {name} is {os.environ[name]!r}, which JAX refuses: {reason}."


def explain(error: BaseException, workdir: pathlib.Path | None = None) -> str | None:
    """Return a sentence for a failure of the file system that a user can fix, or None.

    These are a full disk or quota, a failure to write below the workdir, and a file without permission to
    open it.
    TensorStore, which writes checkpoints, reports the operating system's errors as ValueErrors.
    """
    if not isinstance(error, OSError | ValueError):
        return None
    number, path = _number(error), _path(error)
    if number in FULL:
        return (
            f"{FULL[number]}: {path or workdir or 'the workdir'} could not be written. Free some space and "
            "run the same command again; complete checkpoints are intact and it resumes from the newest."
        )
    if path is None or number not in (*DENIED, errno.ENOENT, errno.ENOTDIR):
        return None
    reason = os.strerror(number)
    if workdir is not None and pathlib.Path(path).absolute().is_relative_to(workdir.absolute()):
        if os.path.exists(path) and not os.access(path, os.R_OK):
            return f"{path} cannot be read ({reason})."
        if number in DENIED or not workdir.is_dir():
            return f"{path} cannot be made or written ({reason}). Choose another --workdir."
        return None
    return f"{path} cannot be opened ({reason}): check its permissions." if number in DENIED else None


def _number(error: OSError | ValueError) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    known = (*FULL, *DENIED, errno.ENOENT, errno.ENOTDIR)
    return next((number for number in known if os.strerror(number) in str(error)), None)


def _path(error: OSError | ValueError) -> str | None:
    """Return the file that an error names; TensorStore's messages hold it in quotes."""
    if isinstance(error, OSError) and error.filename is not None:
        return os.fsdecode(error.filename)
    match = re.search(r'"(/[^"]+?)(\.orbax-checkpoint-tmp|/?")', str(error))
    return match.group(1) if match else None


def output_is_broken() -> bool:
    """Return whether the reader of the standard output has closed it."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
    except (AttributeError, OSError):  # no poll on this system, or no file behind sys.stdout
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def end_broken_pipe() -> int:
    """Return the exit code of a program whose reader has closed the pipe, such as `| head`."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141  # 128 + SIGPIPE, as a shell would report it
