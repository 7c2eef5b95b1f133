"""Reading and writing with Orbax: full disks and damaged files are found before Orbax starts."""

import contextlib
import errno
import json
import math
import os
import pathlib
import shutil
import tempfile
from typing import Any

import jax
import orbax.checkpoint as ocp

from l2l_jax.utils.io import atomic_write

SIZES = "sizes.json"


class Damaged(Exception):
    """A checkpoint cannot be read, or holds something else than was expected; says why."""


def alone() -> ocp.options.MultiprocessingOptions:
    """Return options that let this process read or write without waiting for the others."""
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process_{index}"
    )


def check_space(folder: pathlib.Path, tree: Any, *, reserve: bool = False) -> None:
    """Raise the disk's error if arrays do not fit.

    Args:
      folder: Folder on the disk.
      tree: Arrays.
      reserve: Also allocate their space for a moment, which finds quotas and limits of files, where the
        system can.
    """
    sizes = [x.nbytes for x in jax.tree.leaves(tree)]
    if shutil.disk_usage(folder).free < sum(sizes):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    if not reserve or not hasattr(os, "posix_fallocate"):
        return
    largest = max([1, *sizes])
    try:
        with contextlib.ExitStack() as files:
            for _ in range(math.ceil(sum(sizes) / largest)):
                file = files.enter_context(tempfile.TemporaryFile(dir=folder))
                os.posix_fallocate(file.fileno(), 0, largest)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(error.errno, os.strerror(error.errno), str(folder)) from None


def record_sizes(folder: pathlib.Path) -> None:
    """Record the size of every file of a complete checkpoint."""
    atomic_write(folder / SIZES, json.dumps(_sizes(folder)) + "\n")


def read_arrays(folder: pathlib.Path, target: Any) -> Any:
    """Read arrays that Orbax wrote, for a tree of `jax.ShapeDtypeStruct`, by this process alone.

    Raises:
      Damaged: The folder cannot be read, or holds other arrays. PermissionError, MemoryError and errors of
        devices pass through.
    """
    try:
        with ocp.StandardCheckpointer(multiprocessing_options=alone()) as reader:
            _check_shapes(reader.metadata(folder), target)
            return reader.restore(folder, target)
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # Orbax wraps the errors of arrays in bare `Exception`s
            cause = cause.__cause__
        refused = isinstance(cause, PermissionError) or "PERMISSION_DENIED" in str(cause)
        if refused or not isinstance(cause, ValueError | KeyError | TypeError | OSError):
            raise cause from None
        reason = f"{type(cause).__name__}: {' '.join(str(cause).split())[:200]}"
    raise Damaged(reason)


def _check_shapes(metadata: Any, target: Any) -> None:
    """Raise a ValueError for an array of another shape, before Orbax starts reads that it then abandons."""
    stored = getattr(metadata, "item_metadata", metadata)
    shapes = {jax.tree_util.keystr(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(stored)}
    for path, wanted in jax.tree_util.tree_leaves_with_path(target):
        found = shapes.get(jax.tree_util.keystr(path), wanted.shape)
        if tuple(found) != tuple(wanted.shape):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"Requested shape {tuple(wanted.shape)} of {name}, stored is {tuple(found)}")


def check_sizes(folder: pathlib.Path) -> None:
    """Raise `Damaged` if a file has changed its size since `record_sizes`, where that was called."""
    try:
        expected = json.loads((folder / SIZES).read_text("utf-8"))
    except FileNotFoundError:
        return
    except ValueError as error:
        raise Damaged(f"{SIZES}: {error}") from None
    found = _sizes(folder)
    for name, size in expected.items():
        if found.get(name) != size:
            raise Damaged(f"{name} has {found.get(name, 'no')} bytes instead of {size}")


def _sizes(folder: pathlib.Path) -> dict[str, int]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != SIZES)
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}
