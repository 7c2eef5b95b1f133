"""Training steps on many devices: one program under `jit` over a mesh, or a copy per device under `pmap`."""

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
    """`jit` over a mesh: batches are global arrays, and XLA inserts what devices exchange.

    Parameters that are split along "fsdp" are gathered at the start of a step; the gradients are scattered at
    its end. Devices along both axes work on different rows, so that splitting saves memory and repeats no
    work (fully sharded data parallelism: Rajbhandari et al. 2020, "ZeRO").

    Attributes:
      kind: Its name in `config.parallel`.
      axis_name: The mapped axis over which a step sees batches split, or None where they are whole.
      mesh: Devices with the axes "data" and "fsdp".
    """

    kind: ParallelKind = "jit"
    axis_name: str | None = None

    def __init__(self, mesh: Mesh):
        self.mesh = mesh
        self._split = mesh.shape["fsdp"] > 1
        self._whole = NamedSharding(mesh, PartitionSpec())

    def gather(self, params: Any) -> Any:
        """Make parameters whole on every device, to compute with."""
        return jax.lax.with_sharding_constraint(params, self._whole) if self._split else params

    def scatter(self, gradients: Any) -> Any:
        """Sum gradients over the devices as far as the state is split, and place them as it is."""
        if not self._split:
            return gradients
        # Summed whole, then split: asked for parts alone, XLA sends the rows of a batch to the device of
        # the words that they look up. GPUs and TPUs make one reduce-scatter of the two.
        gradients = jax.lax.with_sharding_constraint(gradients, self._whole)
        return jax.lax.with_sharding_constraint(gradients, sharding.parameter_shardings(gradients, self.mesh))

    def mean(self, tree: Any) -> Any:
        """Average means over a device's rows to means over the batch."""
        return tree

    def compile(self, step: Callable, state: Any) -> Any:
        """Return a compiled step whose state, of the shapes of `state`, is donated and stays in place."""
        shardings = sharding.parameter_shardings(state, self.mesh), self._whole
        return jax.jit(step, donate_argnums=0, out_shardings=shardings)

    def compile_measure(self, measure: Callable) -> Callable:
        """Return a compiled `(params, rows) -> [row]`: the values of all rows, known to every process."""

        def known(params, rows):
            return jax.lax.with_sharding_constraint(measure(self.gather(params), rows), self._whole)

        return jax.jit(known)

    def rows(self, batch: Any) -> Any:
        """Place this process's rows of a global batch as the step takes them."""
        return sharding.shard_batch(batch, self.mesh)

    def scalar(self, value: float) -> jax.Array:
        """Return a float32 scalar of the state, the same in every process."""
        return jax.make_array_from_callback((), self._whole, lambda _: np.float32(value))


class PmapParallel(Parallel):
    """`pmap`: every device runs the step on its rows `[device, row, …]`, with all parameters."""

    kind: ParallelKind = "pmap"
    axis_name = "batch"

    def __init__(self, mesh: Mesh):
        if mesh.shape["fsdp"] > 1:
            raise UserError(
                "config.parallel is 'pmap', which keeps all parameters on every device: config.mesh.fsdp "
                f"must be 1, not {mesh.shape['fsdp']}, or config.parallel 'jit'.",
                known_to_all=True,
            )
        # `pmap` takes the devices of a process side by side; a mesh follows the wires of a TPU slice.
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
        def known(params, rows):
            return jax.lax.all_gather(measure(params, rows), self.axis_name, tiled=True)

        return self._pmap(known, (None, 0))

    def rows(self, batch: Any) -> Any:  # noqa: D102
        devices = len(self.mesh.local_devices)
        return jax.tree.map(lambda x: np.reshape(x, (devices, -1, *x.shape[1:])), batch)

    def scalar(self, value: float) -> jax.Array:  # noqa: D102
        return jnp.float32(value)


def make_parallel(mesh: Mesh, kind: ParallelKind) -> Parallel:
    """Return the way to run steps on a mesh that `config.parallel` names.

    Raises:
      UserError: It is "pmap", and the axis "fsdp" is not of size 1.
    """
    return PmapParallel(mesh) if kind == "pmap" else Parallel(mesh)
