"""Where arrays live: a mesh of devices, batches split over it, parameters on every device."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from l2l_jax.errors import UserError


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh ("data",) over `devices`, by default all of them."""
    devices = jax.devices() if devices is None else devices
    # Auto, not Explicit: look-ups of a sharded index in a replicated table need it.
    return Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))


def check_batch_size(batch_size: int, parts: int, mesh: Mesh, field: str) -> None:
    """Raise a UserError unless `parts` equal parts of a batch split evenly over the mesh."""
    if batch_size % (mesh.size * parts):
        raise UserError(
            f"{field} is {batch_size}, which {mesh.size} devices times {parts} accumulated parts "
            "do not divide: choose a multiple."
        )


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Arrays copied to every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """This process's rows of a global batch, split over its devices along the first axis."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
