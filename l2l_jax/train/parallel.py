"""The step on many devices: one program under `jit` over a mesh, or a copy per device under `pmap`.

Both run the step of `l2l_jax.train.step` on the same state and differ in `Parallel` alone; their
results agree up to rounding.
"""

import abc
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from l2l_jax.errors import UserError
from l2l_jax.train import sharding

ParallelKind = Literal["jit", "pmap"]


class StepCollectives:
    """What a step sends between devices: nothing, for one that sees whole batches and whole parameters.

    Attributes:
      axis_name: the mapped axis over which batches are split, or None where they are whole.
    """

    axis_name: str | None = None

    def gather(self, params: Any) -> Any:
        """The parameters whole on every device, to compute with."""
        return params

    def scatter(self, gradients: Any) -> Any:
        """Gradients where the state lies, summed over the devices as far as they are split."""
        return gradients

    def mean(self, tree: Any) -> Any:
        """Means over a device's rows → means over the batch."""
        return tree


class Parallel(StepCollectives, abc.ABC):
    """A way to run steps on the devices of a mesh.

    Attributes:
      kind: its name in `config.parallel`.
      mesh: the devices, with the axes "data" and "fsdp".
    """

    kind: ParallelKind
    mesh: Mesh

    @abc.abstractmethod
    def compile(self, step: Callable, state: Any) -> Any:
        """A compiled step, whose state, of the shapes of `state`, is donated and stays where it is."""

    @abc.abstractmethod
    def compile_measure(self, measure: Callable) -> Callable:
        """`(params, rows) -> [row]`: the values of all rows, known to every process."""

    @abc.abstractmethod
    def rows(self, batch: Any) -> Any:
        """This process's rows of a global batch, as the step takes them."""

    @abc.abstractmethod
    def scalar(self, value: float) -> jax.Array:
        """A float32 scalar of the state, the same in every process."""


class JitParallel(Parallel):
    """`jit` over a mesh: batches are global arrays, XLA inserts what devices must tell one another.

    Parameters that are split along "fsdp" are gathered at the start of a step; the gradients are
    scattered at its end. Devices along both axes work on different rows, so that splitting saves memory
    and repeats no work (fully sharded data parallelism: Rajbhandari et al. 2020, "ZeRO").

    Args:
      mesh: axes "data" and "fsdp".
    """

    kind: ParallelKind = "jit"

    def __init__(self, mesh: Mesh):
        self.mesh = mesh
        self._split = mesh.shape["fsdp"] > 1
        self._whole = NamedSharding(mesh, PartitionSpec())

    def gather(self, params: Any) -> Any:
        if not self._split:
            return params
        return jax.lax.with_sharding_constraint(params, self._whole)

    def scatter(self, gradients: Any) -> Any:
        if not self._split:
            return gradients
        # Summed whole, then split: asked for parts alone, XLA sends the rows of a batch to the device of
        # the words that they look up. GPUs and TPUs make one reduce-scatter of the two.
        gradients = jax.lax.with_sharding_constraint(gradients, self._whole)
        shardings = sharding.parameter_shardings(gradients, self.mesh)
        return jax.lax.with_sharding_constraint(gradients, shardings)

    def compile(self, step: Callable, state: Any) -> Any:
        """A step on global arrays; the state, of the shapes of `state`, is donated and stays where it is."""
        shardings = sharding.parameter_shardings(state, self.mesh), self._whole
        return jax.jit(step, donate_argnums=0, out_shardings=shardings)

    def compile_measure(self, measure: Callable) -> Callable:
        def known(params, rows):
            return jax.lax.with_sharding_constraint(measure(self.gather(params), rows), self._whole)

        return jax.jit(known)

    def rows(self, batch: Any) -> Any:
        """This process's rows of a global batch, on its devices."""
        return sharding.shard_batch(batch, self.mesh)

    def scalar(self, value: float) -> jax.Array:
        return jax.make_array_from_callback((), self._whole, lambda _: np.float32(value))


class PmapParallel(Parallel):
    """`pmap`: every device runs the step on its rows, with all parameters, and averages the gradients.

    Args:
      mesh: the devices; its axis "fsdp" has size 1.

    Raises:
      UserError: another size of the axis "fsdp".
    """

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
        devices = sharding.by_process(mesh.devices.flat)
        self.mesh = Mesh(
            np.array(devices).reshape(mesh.devices.shape), mesh.axis_names, axis_types=mesh.axis_types
        )

    def mean(self, tree: Any) -> Any:
        return jax.lax.pmean(tree, self.axis_name)

    def compile(self, step: Callable, state: Any) -> Any:
        """A step on a replicated state and rows `[device, row, …]`; the state is donated."""
        del state  # whole everywhere, whatever its shapes
        return jax.pmap(
            step, self.axis_name, in_axes=(None, None, 0), out_axes=None, donate_argnums=0,
            devices=list(self.mesh.devices.flat),
        )  # fmt: skip

    def compile_measure(self, measure: Callable) -> Callable:
        def known(params, rows):
            return jax.lax.all_gather(measure(params, rows), self.axis_name, tiled=True)

        return jax.pmap(
            known, self.axis_name, in_axes=(None, 0), out_axes=None, devices=list(self.mesh.devices.flat)
        )

    def rows(self, batch: Any) -> Any:
        """This process's rows of a global batch, `[device, row, …]`."""
        devices = len(self.mesh.local_devices)
        return jax.tree.map(lambda x: np.reshape(x, (devices, -1, *x.shape[1:])), batch)

    def scalar(self, value: float) -> jax.Array:
        return jnp.float32(value)


def make_parallel(mesh: Mesh, kind: ParallelKind) -> Parallel:
    """The way to run steps on a mesh that `config.parallel` names."""
    parallels: dict[str, Callable[[Mesh], Parallel]] = {"jit": JitParallel, "pmap": PmapParallel}
    return parallels[kind](mesh)
