"""Exchanges between the processes of a run: decisions, errors, results.

Every function here is called by all processes at the same point of the program. With one process nothing is
sent.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from l2l_jax.errors import UserError


def is_primary() -> bool:
    """Return whether this is the primary process, which writes logs, metrics, pictures and reports."""
    return jax.process_index() == 0


def exchange(text: str) -> list[str]:
    """Return the texts of all processes, by process index, once all of them have called this."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = np.ravel(multihost_utils.process_allgather(np.int32(len(data))))
    if not sizes.any():
        return [""] * len(sizes)
    length = 1 << int(sizes.max() - 1).bit_length()  # few different lengths: few programs to compile
    padded = np.zeros(max(length, 64), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]


@contextlib.contextmanager
def barrier() -> Iterator[None]:
    """Let all processes get through this block, or none.

    For work that can fail in one process and not in another, such as reading files: otherwise those that
    succeeded would wait for ever for those that failed. Nothing in the block may wait for other processes.

    Raises:
      UserError: Some process raised one, or another exception elsewhere; it names the processes unless all of
        them say the same. `known_to_all` is set, so that it is printed once. An exception of this process
        that is not a UserError is raised as it is.
    """
    failure, text = None, ""
    try:
        yield
    except Exception as error:
        failure = error
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    texts = exchange(text)
    if not any(texts):
        return
    if jax.process_count() > 1:
        if failure is None or isinstance(failure, UserError):
            named = (f"Process {index} of {len(texts)}: {text}" for index, text in enumerate(texts) if text)
            failure = UserError(texts[0] if len(set(texts)) == 1 else " ".join(named))
        failure.known_to_all = True  # type: ignore[attr-defined]
    assert failure is not None
    raise failure


def from_primary(compute: Callable[[], Any]) -> Any:
    """Return in all processes the JSON-able value that `compute()` returns in the primary process.

    Also for looking at a shared disk, which may show different processes different things for a while.
    """
    if jax.process_count() == 1:
        return compute()
    text = ""
    with barrier():
        if is_primary():
            text = json.dumps(compute())
    return json.loads(exchange(text)[0])


def on_primary(work: Callable[[], None]) -> None:
    """Let the primary process alone do `work`; the others wait until it is done, or fail with it."""
    with barrier():
        if is_primary():
            work()


def to_host(tree: Any) -> Any:
    """Return NumPy arrays of a tree, joined where their parts are on devices of several processes."""

    def whole(x):
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            return multihost_utils.process_allgather(x, tiled=True)
        return x

    return jax.device_get(jax.tree.map(whole, tree))


def largest_of_all() -> Callable[[int], jax.Array]:
    """Return a compiled maximum of the numbers with which all processes call it, that waits for none."""
    devices = Mesh(np.array(jax.devices()), ("device",), axis_types=(AxisType.Auto,))
    split = NamedSharding(devices, PartitionSpec("device"))
    largest = jax.jit(lambda x: x.max(), out_shardings=NamedSharding(devices, PartitionSpec()))

    def call(number: int) -> jax.Array:
        mine = np.full(jax.local_device_count(), number, np.int32)
        return largest(jax.make_array_from_process_local_data(split, mine))

    return call
