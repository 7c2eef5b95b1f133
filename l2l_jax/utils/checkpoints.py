"""Reading and writing with Orbax, with checks for full disks and damaged files before Orbax starts."""

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
    """A checkpoint that cannot be read or does not have the expected content; the message says why."""


def alone() -> ocp.options.MultiprocessingOptions:
    """Return options that let this process read or write without waiting for other processes."""
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process_{index}"
    )


def check_space(folder: pathlib.Path, tree: Any, *, reserve: bool = False) -> None:
    """Raise an OSError if arrays do not fit on the disk.

    Args:
      folder: Folder on the disk.
      tree: Tree of arrays.
      reserve: Whether to also allocate the space temporarily, if the system supports it, which detects quotas
        and file size limits.
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
    """Read arrays written by Orbax, for a tree of `jax.ShapeDtypeStruct`, in this process only.

    Raises:
      Damaged: The folder cannot be read, or its arrays differ from `target`. PermissionError, MemoryError and
        device errors are not caught.
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
    """Raise a ValueError if a shape differs, before Orbax starts reads that it would then abandon."""
    stored = getattr(metadata, "item_metadata", metadata)
    shapes = {jax.tree_util.keystr(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(stored)}
    for path, like in jax.tree_util.tree_leaves_with_path(target):
        shape = shapes.get(jax.tree_util.keystr(path), like.shape)
        if tuple(shape) != tuple(like.shape):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"Requested shape {tuple(like.shape)} of {name}, stored is {tuple(shape)}")


def check_sizes(folder: pathlib.Path) -> None:
    """Raise `Damaged` if the size of a file has changed since `record_sizes`, if that was called."""
    try:
        expected = json.loads((folder / SIZES).read_text("utf-8"))
    except FileNotFoundError:
        return
    except ValueError as error:
        raise Damaged(f"{SIZES}: {error}") from None
    sizes = _sizes(folder)
    for name, size in expected.items():
        if sizes.get(name) != size:
            raise Damaged(f"{name} has {sizes.get(name, 'no')} bytes instead of {size}")


def _sizes(folder: pathlib.Path) -> dict[str, int]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != SIZES)
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}
