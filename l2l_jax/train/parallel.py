"""Parallel training steps: one program under `jit` over a mesh, or a copy per device under `pmap`."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from l2l_jax.errors import UserError
from l2l_jax.train import sharding

ParallelKind = Literal["jit", "pmap"]


class Parallel:
    """Parallelism with `jit` over a mesh: batches are global arrays, and XLA inserts the communication.

    Parameters sharded along "fsdp" are gathered at the start of a step, and gradients are scattered at its
    end. Devices along both axes process different rows, so sharding saves memory without redundant work
    (fully sharded data parallelism: Rajbhandari et al. 2020, "ZeRO").

    Attributes:
      kind: Name in `config.parallel`.
      axis_name: Mapped axis over which batches are split in a step, or None if they are global arrays.
      mesh: Devices with the axes "data" and "fsdp".
    """

    kind: ParallelKind = "jit"
    axis_name: str | None = None

    def __init__(self, mesh: Mesh):
        self.mesh = mesh
        self._split = mesh.shape["fsdp"] > 1
        self._whole = NamedSharding(mesh, PartitionSpec())

    def gather(self, params: Any) -> Any:
        """Gather complete parameters on every device for computation."""
        return jax.lax.with_sharding_constraint(params, self._whole) if self._split else params

    def scatter(self, gradients: Any) -> Any:
        """Sum gradients over the devices and shard them like the state, if it is sharded."""
        if not self._split:
            return gradients
        # All-reduce, then shard: if constrained to shards directly, XLA sends the rows of a batch to the
        # devices that hold their embeddings. GPUs and TPUs fuse both operations to a reduce-scatter.
        gradients = jax.lax.with_sharding_constraint(gradients, self._whole)
        return jax.lax.with_sharding_constraint(gradients, sharding.parameter_shardings(gradients, self.mesh))

    def mean(self, tree: Any) -> Any:
        """Average the means over each device's rows to means over the batch."""
        return tree

    def compile(self, step: Callable, state: Any) -> Any:
        """Return a compiled step that donates its state, which has the shapes of `state`."""
        shardings = sharding.parameter_shardings(state, self.mesh), self._whole
        return jax.jit(step, donate_argnums=0, out_shardings=shardings)

    def compile_measure(self, measure: Callable) -> Callable:
        """Return a compiled `(params, rows) -> [row]` whose result is replicated to every process."""

        def replicated(params, rows):
            return jax.lax.with_sharding_constraint(measure(self.gather(params), rows), self._whole)

        return jax.jit(replicated)

    def rows(self, batch: Any) -> Any:
        """Shard this process's rows of a global batch for the step."""
        return sharding.shard_batch(batch, self.mesh)

    def scalar(self, value: float) -> jax.Array:
        """Return a replicated float32 scalar for the state."""
        return jax.make_array_from_callback((), self._whole, lambda _: np.float32(value))


class PmapParallel(Parallel):
    """Parallelism with `pmap`: each device holds all parameters and runs the step on `[device, row, …]`."""

    kind: ParallelKind = "pmap"
    axis_name = "batch"

    def __init__(self, mesh: Mesh):
        if mesh.shape["fsdp"] > 1:
            raise UserError(
                "config.parallel is 'pmap', which keeps all parameters on every device: config.mesh.fsdp "
                f"must be 1, not {mesh.shape['fsdp']}, or config.parallel 'jit'.",
                known_to_all=True,
            )
        # `pmap` needs the devices of a process to be contiguous; a mesh follows the topology of a TPU slice.
        devices = np.array(sharding.by_process(mesh.devices.flat)).reshape(mesh.devices.shape)
        super().__init__(Mesh(devices, mesh.axis_names, axis_types=mesh.axis_types))

    def mean(self, tree: Any) -> Any:  # noqa: D102
        return jax.lax.pmean(tree, self.axis_name)

    def _pmap(self, function: Callable, in_axes: tuple, **more: Any) -> Any:
        devices = list(self.mesh.devices.flat)
        return jax.pmap(function, self.axis_name, in_axes=in_axes, out_axes=None, devices=devices, **more)

    def compile(self, step: Callable, state: Any) -> Any:  # noqa: D102
        return self._pmap(step, (None, None, 0), donate_argnums=0)

    def compile_measure(self, measure: Callable) -> Callable:  # noqa: D102
        def gathered(params, rows):
            return jax.lax.all_gather(measure(params, rows), self.axis_name, tiled=True)

        return self._pmap(gathered, (None, 0))

    def rows(self, batch: Any) -> Any:  # noqa: D102
        devices = len(self.mesh.local_devices)
        return jax.tree.map(lambda x: np.reshape(x, (devices, -1, *x.shape[1:])), batch)

    def scalar(self, value: float) -> jax.Array:  # noqa: D102
        return jnp.float32(value)


def make_parallel(mesh: Mesh, kind: ParallelKind) -> Parallel:
    """Return the kind of parallelism named by `config.parallel`, on a mesh.

    Raises:
      UserError: The kind is "pmap", but the size of the axis "fsdp" is not 1.
    """
    return PmapParallel(mesh) if kind == "pmap" else Parallel(mesh)
