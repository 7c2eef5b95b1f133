"""Reading what Orbax wrote: by this process alone, and with one sentence about what is damaged."""

import contextlib
import functools
import logging
import pathlib
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp


class Damaged(Exception):
    """A checkpoint cannot be read, or holds something else than was expected; says why."""


def alone() -> ocp.options.MultiprocessingOptions:
    """Lets Orbax read or write in this process without waiting for others, whose disk may differ."""
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process_{index}"
    )


def read(handler: ocp.CheckpointHandler, folder: pathlib.Path, args: ocp.args.CheckpointArgs) -> Any:
    """What `handler` reads from `folder`, asked for by `args`.

    Raises:
      Damaged: it cannot be read. PermissionError, MemoryError and the devices' errors pass through.
    """
    with _abandoned_reads_silent():
        try:
            with ocp.Checkpointer(handler, multiprocessing_options=alone()) as reader:
                return reader.restore(folder, args=args)
        except Exception as error:
            cause = _first_cause(error)
            refused = isinstance(cause, PermissionError) or "PERMISSION_DENIED" in str(cause)
            if refused or not isinstance(cause, ValueError | KeyError | TypeError | OSError):
                raise cause from None
            reason = f"{type(cause).__name__}: {' '.join(str(cause).split())[:200]}"
        raise Damaged(reason)


@contextlib.contextmanager
def _abandoned_reads_silent() -> Iterator[None]:
    """When a read fails, Orbax abandons those beside it; what they say as they end tells nothing new.

    They may end long after: from the first failure on they are silent.
    """
    log, hook = logging.getLogger("asyncio"), sys.unraisablehook
    if _not_abandoned in log.filters:
        yield
        return
    log.addFilter(_not_abandoned)
    sys.unraisablehook = functools.partial(_report_unless_abandoned, hook)
    yield
    sys.unraisablehook = hook
    log.removeFilter(_not_abandoned)


def _not_abandoned(record: logging.LogRecord) -> bool:
    """False for what asyncio says of Orbax's own errors, and of a wait for TensorStore, whose errors start
    with a status in capitals."""
    _, error, place = record.exc_info or (None, None, None)
    status, _, _ = str(error or "").partition(": ")
    raised_in = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(place)]
    by_orbax = any(name.startswith("orbax.") for name in raised_in)
    return not (by_orbax or status.isupper() or "_wrap_awaitable" in record.getMessage())


def _first_cause(error: BaseException) -> BaseException:
    """Orbax wraps the errors of arrays in bare `Exception`s."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _report_unless_abandoned(report: Callable[[Any], None], unraisable: Any) -> None:
    abandoned = isinstance(unraisable.object, types.CoroutineType)
    if not abandoned and str(unraisable.exc_value) != "Event loop is closed":
        report(unraisable)
