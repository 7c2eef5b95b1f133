"""Atomic writes, hashing of arrays, and an on-disk cache of results."""

import contextlib
import hashlib
import json
import os
import pathlib
import secrets
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from l2l_jax.utils.multihost import from_primary, on_primary

SHARED_WITHIN = 30.0  # seconds until a file written by one host must be visible to the others
KEY, STAMP = "cache_key.json", "stamp"

UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, EOFError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error),
)
"""Exceptions raised when reading a damaged entry."""


@contextlib.contextmanager
def atomic_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a temporary path in the same folder, which replaces `path` if the block succeeds.

    The temporary file is flushed to disk before it is renamed, and deleted if the block fails.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.unfinished")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(path: pathlib.Path, data: bytes | str) -> None:
    """Write a file atomically; text is encoded as UTF-8."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def atomic_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield an empty folder next to `path`, which replaces `path` if the block succeeds.

    The parent is created. The temporary folder is deleted if the block fails, and leftovers of a killed
    process are deleted by the next call. Only one process at a time may write a folder.
    """
    temporary, old = (path.with_name(f"{path.name}.{suffix}") for suffix in ("unfinished", "old"))
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def tree_hash(tree: Any) -> str:
    """Return the hexadecimal SHA-256 of all key paths, shapes, dtypes and values of a tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]
    digest = hashlib.sha256()
    for name, leaf in sorted(named, key=lambda item: item[0]):
        array = np.ascontiguousarray(jax.device_get(leaf))
        digest.update(f"{name} {array.shape} {array.dtype.str}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


class ResultCache:
    """A folder of cached results, reused by later runs with the same JSON-serializable `key`.

    An entry is a JSON-serializable value or a mapping of NumPy arrays. Entries are written atomically; an
    unreadable entry counts as missing. All processes must construct the cache at the same point of the
    program; the primary process deletes the folder's content if it belongs to another key. Several hosts need
    a folder on shared storage.
    """

    def __init__(self, folder: str | pathlib.Path, key: Mapping[str, Any]):
        self.folder = pathlib.Path(folder)
        on_primary(lambda: self._claim(json.loads(json.dumps(key))))

    def _claim(self, key: Mapping[str, Any]) -> None:
        path = self.folder / KEY
        with contextlib.suppress(OSError, ValueError):
            if json.loads(path.read_text("utf-8")) == key:
                return
        path.unlink(missing_ok=True)  # first, so that a partially deleted folder has no key
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)
        atomic_write(path, json.dumps(key, indent=2, sort_keys=True) + "\n")

    def get(
        self, name: str, *, stamp: Any = None, members: Sequence[str] | None = None, wait: bool = False
    ) -> Any:
        """Return an entry, or None if it is missing, unreadable or was stored with another stamp.

        Args:
          name: Name of the entry; "/" separates folders.
          stamp: Additional dependencies of this entry, as passed to `put`; None accepts any.
          members: Names of the arrays to read if they exist; None reads all.
          wait: Whether to wait up to `SHARED_WITHIN` seconds for another host's file.
        """
        arrays, value = self.folder / f"{name}.npz", self.folder / f"{name}.json"
        deadline = time.monotonic() + SHARED_WITHIN * wait
        while not (arrays.exists() or value.exists()) and time.monotonic() < deadline:
            time.sleep(0.2)
        try:
            if value.exists():
                entry = json.loads(value.read_text("utf-8"))
                return entry["value"] if stamp is None or entry[STAMP] == _text(stamp) else None
            with np.load(arrays) as file:
                if stamp is not None and str(file[STAMP]) != _text(stamp):
                    return None
                names = file.files if members is None else members
                return {member: file[member] for member in names if member in file and member != STAMP}
        except UNREADABLE:
            return None

    def put(self, name: str, value: Any, *, stamp: Any = None) -> None:
        """Store arrays by name, or a JSON-serializable value, replacing an earlier entry; see `get`."""
        arrays, plain = self.folder / f"{name}.npz", self.folder / f"{name}.json"
        arrays.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(value, Mapping) and all(isinstance(x, np.ndarray) for x in value.values()):
            with atomic_file(arrays) as temporary, temporary.open("wb") as file:
                np.savez(file, **{**value, STAMP: np.array(_text(stamp))})
            plain.unlink(missing_ok=True)
        else:
            atomic_write(plain, json.dumps({STAMP: _text(stamp), "value": value}) + "\n")
            arrays.unlink(missing_ok=True)

    def put_shared(self, name: str, value: Any, *, stamp: Any = None) -> None:
        """Store an entry in the primary process; must be called by all processes."""
        on_primary(lambda: self.put(name, value, stamp=stamp))

    def has_all(self, names: Iterable[str], *, stamp: Any = None) -> bool:
        """Return whether the primary process can read all of these entries; call it in all processes."""
        return from_primary(lambda: all(self.get(name, stamp=stamp) is not None for name in names))

    def get_or_compute(self, name: str, compute: Callable[[], Any], *, stamp: Any = None) -> Any:
        """Return an entry; compute and store it if it is missing. Must be called by all processes.

        Either all processes read the entry, or all compute it and the primary process stores it.

        Raises:
          FileNotFoundError: This process cannot read an entry that the primary process can read.
        """
        if self.has_all([name], stamp=stamp):
            return self._wait_for(name, stamp=stamp)
        value = compute()
        self.put_shared(name, value, stamp=stamp)
        return value

    def join(self, names: Sequence[str], member: str) -> np.ndarray | None:
        """Concatenate one array of several entries; return None if no entry has it.

        Raises:
          FileNotFoundError: An entry is missing, or another host's file did not appear in time.
        """
        parts = []
        for name in names:
            parts += self._wait_for(name, members=(member,)).values()
        return np.concatenate(parts) if parts else None

    def _wait_for(self, name: str, **options: Any) -> Any:
        entry = self.get(name, wait=True, **options)
        if entry is None:
            raise FileNotFoundError(f"{self.folder / name} is missing or damaged; run the same command again")
        return entry


def _text(stamp: Any) -> str:
    return json.dumps(stamp, sort_keys=True)
