"""Exclusive ownership of a folder by one run at a time, on local and shared storage.

The owner keeps a lock file in the folder and renews it every few seconds. A process that finds a lock takes
it over if the owner ran on this machine and has ended, or if the lock is not renewed while it watches.
"""

import atexit
import contextlib
import functools
import json
import logging
import os
import pathlib
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from l2l_jax.errors import UserError

logger = logging.getLogger(__name__)
LOCK = "lock.json"
RENEW_SECONDS = 5.0
END_SECONDS = 3.0
# Seconds to watch a lock of another machine, in which a running owner would renew it several times
STALE_SECONDS = 30.0


def claim(folder: pathlib.Path) -> Callable[[], None]:
    """Make this process the owner of a folder and its subfolders until it ends.

    Returns:
      A function that releases the folder; it does nothing if this process already owned the folder.

    Raises:
      UserError: Another process owns the folder.
    """
    pid = os.getpid()
    # Identifies this process among the processes of all machines
    me = {"host": socket.gethostname(), "machine": _machine(), "pid": pid, "start": _start_time(pid)}
    for place in (folder.absolute(), *folder.absolute().parents):
        if _owner(place / LOCK).get("process") == me:
            return lambda: None
    path, token = folder / LOCK, secrets.token_hex(8)
    content = json.dumps({"process": me, "token": token, "since": time.strftime("%Y-%m-%d %H:%M:%S")})
    deadline = time.monotonic() + END_SECONDS
    while not _create(path, content):
        owner = _owner(path)
        if not _is_alive(path, owner):
            _remove(path, owner)
        elif time.monotonic() < deadline:  # after a restart, old processes may be about to end
            time.sleep(0.2)
        else:
            process = owner.get("process", {"pid": "unknown", "host": "another machine"})
            where = f"process {process['pid']} on {process['host']}, since {owner.get('since')}"
            raise UserError(
                f"--workdir={folder} belongs to a run that is still active ({where}). Use another --workdir, "
                "or wait until it has ended."
            )
    threading.Thread(target=_renew, args=(path, token), daemon=True).start()
    release = functools.partial(_remove, path, {"token": token})
    atexit.register(release)
    return release


def _machine() -> str:
    """Return an identifier of the PID namespace of this process (system or container)."""
    with contextlib.suppress(OSError):
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def _start_time(pid: int) -> str | None:
    """Return the start time of a local process in clock ticks, or None if it has ended."""
    with contextlib.suppress(OSError):
        status = pathlib.Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        return status[19] if status[0] != "Z" else None
    return None


def _create(path: pathlib.Path, content: str) -> bool:
    """Create the lock atomically; return whether it was created."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        new.write_text(content, "utf-8")
        return _place(new, path)
    finally:
        new.unlink(missing_ok=True)


def _place(new: pathlib.Path, path: pathlib.Path) -> bool:
    """Move a new lock to its path unless one exists; return whether it was moved."""
    try:
        os.link(new, path)
    except FileExistsError:
        return path.exists() and os.path.samefile(new, path)  # NFS may succeed but lose the reply
    except OSError:  # a file system without links
        with contextlib.suppress(FileExistsError), path.open("x", encoding="utf-8") as file:
            file.write(new.read_text("utf-8"))
            return True
        return False
    return True


def _owner(path: pathlib.Path) -> dict[str, Any]:
    """Return the content of a lock; empty if there is none or it is damaged."""
    try:
        owner = json.loads(path.read_text("utf-8"))
        process = owner["process"]
        is_complete = isinstance(process["pid"], int) and {"machine", "start", "host"} <= set(process)
    except (OSError, ValueError, TypeError, KeyError):
        return {}
    return owner if is_complete else {}


def _is_alive(path: pathlib.Path, owner: dict[str, Any]) -> bool:
    process = owner.get("process", {})
    if process.get("machine") == _machine():
        if os.path.isdir("/proc/self"):
            return _start_time(process["pid"]) == process["start"]
        with contextlib.suppress(ProcessLookupError):
            os.kill(process["pid"], 0)
            return True
        return False
    last = _last_renewal(path)
    if last is not None and process:
        logger.info("%s may belong to a run on %s; waiting", path.parent, process["host"])
    deadline = time.monotonic() + STALE_SECONDS
    while last is not None and time.monotonic() < deadline:
        time.sleep(min(1.0, STALE_SECONDS / 5))
        now = _last_renewal(path)
        if now is not None and now != last:
            return True
        last = now
    return False


def _last_renewal(path: pathlib.Path) -> int | None:
    """Return the time of the last renewal; opening the file makes NFS query the server."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return None


def _remove(path: pathlib.Path, owner: dict[str, Any]) -> None:
    """Remove the lock of an owner; put it back if another process has replaced it in the meantime."""
    taken = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with contextlib.suppress(OSError):
        path.rename(taken)
        if _owner(taken).get("token") != owner.get("token"):
            _place(taken, path)
        taken.unlink()


def _renew(path: pathlib.Path, token: str) -> None:
    while _owner(path).get("token") == token:
        with contextlib.suppress(OSError):
            os.utime(path)
        time.sleep(RENEW_SECONDS)
