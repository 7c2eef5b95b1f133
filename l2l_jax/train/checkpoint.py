"""Orbax checkpoints of a training phase: training state and position in the data."""

import functools
import json
import logging
import math
import pathlib
import threading
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from l2l_jax.errors import UserError
from l2l_jax.utils.checkpoints import SIZES, Damaged, check_sizes, check_space, read_arrays, record_sizes
from l2l_jax.utils.multihost import exchange, from_primary, is_primary, on_primary

logger = logging.getLogger(__name__)
KEPT = 2  # number of newest checkpoints kept on disk; the older one is a fallback
# Minimum slice size in bytes for splitting an array among its replicas; slicing compiles a program
SLICED_FROM = 2**20
# Orbax numbers the saves of a process, so only one thread may start a save at a time
_one_begins = threading.Lock()


class Checkpointer:
    """Checkpoints `(arrays, facts)` in `folder/<step>`.

    Arrays are a tree of device arrays, such as a `TrainState`; facts are JSON-serializable values, such as
    the position in the data. Saving is asynchronous and atomic: a folder named by a step is complete unless
    it was damaged later. Every process writes the data of its devices to one shared folder, and any number of
    processes can restore it.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder.absolute()
        # Create folders synchronously: Orbax signals their creation by a counter that is not thread-safe.
        later = ocp.AsyncOptions(create_directories_asynchronously=False)
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, async_options=later)
        handlers = {"state": _handler(), "data": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def save(self, step: int, state: Any, facts: dict[str, Any]) -> None:
        """Start saving; `state` may be donated as soon as this method returns.

        Raises:
          OSError: The disk is full, or the previous checkpoint could not be written.
        """
        self.wait()
        on_primary(lambda: check_space(self.folder, state))
        state = _across_processes(state)
        data = {"facts": facts, "devices": _devices(state)}
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(state), data=ocp.args.JsonSave(data))
        with _one_begins:
            self._manager.save(step, args=items)

    def restore_newest(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """Restore the newest readable checkpoint, or return None if there are no checkpoints.

        A checkpoint that cannot be read is logged, renamed to `<step>.damaged` and skipped.

        Args:
          like: Tree of arrays or shapes with the same structure and shardings.

        Raises:
          UserError: There are checkpoints, but none can be read.
        """
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        steps = from_primary(lambda: sorted(self._manager.all_steps(), reverse=True))
        for step in steps:
            state, data, problem = None, dict[str, Any](), ""
            try:
                state, data = _read(self.folder / str(step), target)
            except Damaged as error:
                problem = str(error)
            # A checkpoint is used only if all processes can read it.
            problems = [text for text in exchange(problem) if text]
            if not problems:
                before, now = data["devices"], _devices(like)
                if before != now:
                    message = "The checkpoint was written on %s; it resumes on %s"
                    logger.info(message, _in_words(before), _in_words(now))
                return state, data["facts"]
            on_primary(functools.partial(self._set_aside, step, problems[0]))
            self._manager.reload()
        if steps:
            raise UserError(
                f"None of the checkpoints in {self.folder} can be read (steps "
                f"{', '.join(map(str, steps))}). Delete that folder to start this phase again.",
                known_to_all=True,
            )
        return None

    def _set_aside(self, step: int, problem: str) -> None:
        damaged = self.folder / f"{step}.damaged"
        (self.folder / str(step)).rename(damaged)
        logger.warning("The checkpoint of step %d is damaged and now %s. (%s)", step, damaged, problem)

    def wait(self) -> None:
        """Block until pending saves are on disk; raise their errors."""
        self._manager.wait_until_finished()
        if is_primary():
            for step in self._manager.all_steps():
                if not (self.folder / str(step) / SIZES).exists():
                    record_sizes(self.folder / str(step))

    def close(self) -> None:
        """Finish saving and stop the background threads."""
        self._manager.close()


def _read(folder: pathlib.Path, target: Any) -> tuple[Any, dict[str, Any]]:
    check_sizes(folder)
    try:
        data = json.loads((folder / "data" / "metadata").read_text("utf-8"))
    except (FileNotFoundError, ValueError) as error:
        raise Damaged(f"data: {error}") from None
    return read_arrays(folder / "state", target), data


def _handler() -> ocp.PyTreeCheckpointHandler:
    """Return a handler that does not slice small arrays, and writes all arrays in one transaction.

    Orbax compiles a program for each kind of slice. It writes in a transaction if no limit is set; on a full
    disk, the transaction fails once, whereas otherwise TensorStore reports every dropped write.
    """
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=SLICED_FROM)
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    unlimited = ocp.BasePyTreeCheckpointHandler(type_handler_registry=registry)
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry, handler_impl=unlimited)


def _across_processes(state: Any) -> Any:
    """Return arrays for Orbax; arrays of `pmap` lack the replicas in other processes, which are added."""
    if jax.process_count() == 1:
        return state
    replicated = NamedSharding(Mesh(np.array(jax.devices()), ("device",)), PartitionSpec())

    def to_global(x: jax.Array) -> jax.Array:
        if not x.is_fully_addressable:
            return x
        copies = [shard.data for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape, replicated, copies)

    return jax.tree.map(to_global, state)


def _devices(state: Any) -> dict[str, int]:
    """Count the processes and devices that hold a state, and the shards of its arrays."""
    arrays = jax.tree.leaves(state)
    return {
        "processes": jax.process_count(),
        "devices": max(len(x.sharding.device_set) for x in arrays),
        "parts": max(x.size // max(1, math.prod(x.sharding.shard_shape(x.shape))) for x in arrays),
    }


def _in_words(devices: dict[str, int]) -> str:
    parts = f", parameters in {devices['parts']} parts" if devices["parts"] > 1 else ""
    return f"{devices['devices']} devices of {devices['processes']} processes{parts}"
