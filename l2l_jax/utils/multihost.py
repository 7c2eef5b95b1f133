"""Communication between the processes of a run: decisions, errors, results.

All processes must call these functions at the same point of the program. With one process, nothing is sent.
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
    """Return whether this is the primary process, which writes logs, metrics, images and reports."""
    return jax.process_index() == 0


def exchange(text: str) -> list[str]:
    """Gather the texts of all processes, ordered by process index."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = np.ravel(multihost_utils.process_allgather(np.int32(len(data))))
    if not sizes.any():
        return [""] * len(sizes)
    length = 1 << int(sizes.max() - 1).bit_length()  # few distinct lengths mean few programs to compile
    padded = np.zeros(max(length, 64), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]


@contextlib.contextmanager
def barrier() -> Iterator[None]:
    """Raise an error in all processes if the block fails in any of them.

    This is for work that can fail in some processes only, such as reading files: otherwise processes that
    succeeded would wait forever for those that failed. The block itself must not wait for other processes.

    Raises:
      UserError: Some process raised a UserError, or another process raised any exception. The message names
        the processes unless all messages are equal. `known_to_all` is set to print it only once. Other
        exceptions of this process are raised unchanged.
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
    """Return in all processes the JSON-serializable value of `compute()` in the primary process.

    This is also for inspecting shared storage, whose content may temporarily differ between processes.
    """
    if jax.process_count() == 1:
        return compute()
    text = ""
    with barrier():
        if is_primary():
            text = json.dumps(compute())
    return json.loads(exchange(text)[0])


def on_primary(work: Callable[[], None]) -> None:
    """Run `work` in the primary process only; the others wait until it is done, or fail with it."""
    with barrier():
        if is_primary():
            work()


def to_host(tree: Any) -> Any:
    """Return a tree of NumPy arrays; arrays that are sharded over several processes are gathered."""

    def gather(x):
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            return multihost_utils.process_allgather(x, tiled=True)
        return x

    return jax.device_get(jax.tree.map(gather, tree))


def largest_of_all() -> Callable[[int], jax.Array]:
    """Return a compiled function that computes the maximum over all processes without blocking."""
    devices = Mesh(np.array(jax.devices()), ("device",), axis_types=(AxisType.Auto,))
    split = NamedSharding(devices, PartitionSpec("device"))
    largest = jax.jit(lambda x: x.max(), out_shardings=NamedSharding(devices, PartitionSpec()))

    def call(number: int) -> jax.Array:
        local = np.full(jax.local_device_count(), number, np.int32)
        return largest(jax.make_array_from_process_local_data(split, local))

    return call
