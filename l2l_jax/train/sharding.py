"""Mesh construction and array shardings."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from l2l_jax.errors import UserError

# Minimum number of elements to shard an array along "fsdp"; smaller arrays are replicated
SHARDED_FROM = 4096
# Rows of a batch are sharded over all devices along both axes
ROWS = PartitionSpec(("data", "fsdp"))


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the two axes of the device mesh; their product is the number of devices.

    A batch is sharded over both axes. Along "data", parameters are replicated; along "fsdp", they are
    sharded, together with their optimizer state and moving average.

    Attributes:
      data: Number of devices along "data"; -1 for all that remain.
      fsdp: Number of devices along "fsdp"; -1 for all that remain.
    """

    data: int = -1
    fsdp: int = 1

    def __post_init__(self):
        for name in ("data", "fsdp"):
            if getattr(self, name) < 1 and getattr(self, name) != -1:
                raise ValueError(f"{name} must be at least 1, or -1, not {getattr(self, name)}")
        if self.data == self.fsdp == -1:
            raise ValueError("only one of data and fsdp can be -1")


def make_mesh(devices: list[jax.Device] | None = None, config: MeshConfig | None = None) -> Mesh:
    """Create a mesh ("data", "fsdp") of the sizes in `config` over `devices`, by default all devices.

    Raises:
      UserError: The product of the sizes is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    config = MeshConfig() if config is None else config
    count = len(devices)
    data, fsdp = config.data, config.fsdp
    data = count // fsdp if data == -1 else data
    fsdp = count // data if fsdp == -1 and data else fsdp
    if data * fsdp != count:
        raise UserError(
            f"config.mesh asks for data={config.data} times fsdp={config.fsdp} devices, but there are "
            f"{count}: the product must be {count}; -1 stands for all that remain.",
            known_to_all=True,
        )
    # Auto, not Explicit, because lookups of sharded indices in a replicated table require it.
    axis_types = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types=axis_types, devices=devices)


def by_process(devices: Iterable[jax.Device]) -> list[jax.Device]:
    """Sort devices by process, in their original order within a process."""
    return sorted(devices, key=lambda device: device.process_index)


def check_batch_size(batch_size: int, parts: int, mesh: Mesh, field: str) -> None:
    """Raise a UserError unless each of `parts` equal parts of a batch can be split evenly over the mesh."""
    if batch_size % (mesh.size * parts):
        raise UserError(
            f"{field} is {batch_size}, which is not a multiple of {mesh.size * parts}: {mesh.size} devices "
            f"times {parts} microbatches.",
            known_to_all=True,
        )


def parameter_spec(shape: tuple[int, ...], ways: int) -> PartitionSpec:
    """Return the partition of an array of the state over the `ways` devices along "fsdp".

    The longest axis divisible by `ways` is sharded; among axes of equal length, the last one. Arrays without
    such an axis or with fewer than `SHARDED_FROM` elements are replicated. The partition depends only on the
    shape, so optimizer moments and averages are sharded like their parameters.
    """
    axes = [axis for axis, size in enumerate(shape) if size % ways == 0]
    if ways == 1 or not axes or math.prod(shape) < SHARDED_FROM:
        return PartitionSpec()
    longest = max(axes, key=lambda axis: (shape[axis], axis))
    return PartitionSpec(*(None,) * longest, "fsdp")


def parameter_shardings(tree: Any, mesh: Mesh) -> Any:
    """Return the sharding of every array of a tree by `parameter_spec`."""
    ways = mesh.shape["fsdp"]
    return jax.tree.map(lambda x: NamedSharding(mesh, parameter_spec(x.shape, ways)), tree)


def abstract(tree: Any, mesh: Mesh) -> Any:
    """Return the shapes, dtypes and shardings of a tree of arrays or shapes."""

    def leaf(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(leaf, tree, parameter_shardings(tree, mesh))


def place(tree: Any, mesh: Mesh) -> Any:
    """Transfer parameters or other arrays of the state to the devices."""
    return jax.device_put(tree, parameter_shardings(tree, mesh))


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Shard this process's rows of a global batch over its devices along the first axis."""
    sharding = NamedSharding(mesh, ROWS)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def device_bytes(tree: Any, devices: int) -> int:
    """Return the bytes of arrays on one device; arrays without a sharding are split over all devices."""

    def size(x: Any) -> int:
        if x.sharding is None:
            return math.prod(x.shape) * x.dtype.itemsize // devices
        return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize

    return sum(map(size, jax.tree.leaves(tree)))


def describe(mesh: Mesh, parallel: str) -> str:
    """Describe a mesh, such as "jit 4x2"."""
    return f"{parallel} {mesh.shape['data']}x{mesh.shape['fsdp']}"
