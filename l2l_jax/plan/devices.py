"""Devices that are not there, to compile for: TPUs as libtpu describes them, GPUs by their number."""

import os
from typing import Any

from l2l_jax.errors import UserError
from l2l_jax.plan.chips import Topology


def prepare(topology: Topology) -> None:
    """Set what JAX and libtpu read when they start; call it before JAX is imported.

    The programs are only compiled: JAX itself runs on the CPU. For GPUs, whose compiler needs one,
    it shows as many CPU devices as there are GPUs.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no questions to the metadata server of a cloud
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # it holds no chips
    if not topology.is_tpu:
        (count,) = topology.sides
        given = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{given} --xla_force_host_platform_device_count={count}"


def described(topology: Topology) -> list[Any]:
    """Return the devices of a topology: real ones of a TPU slice in all but that they cannot run anything.

    Raises:
      UserError: libtpu is not installed, or knows no such slice.
    """
    import jax
    from jax.experimental import topologies

    if not topology.is_tpu:
        return jax.devices()
    kind = topology.name.partition(":")[0]
    options = {"chip_config_name": "megacore"} if topology.chip.cores > 1 else {}
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name, num_slices=1, **options
        )
    except (jax.errors.JaxRuntimeError, RuntimeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        if "INVALID_ARGUMENT" not in reason:
            raise UserError(
                "Compiling for TPUs needs libtpu, which is not installed or cannot be loaded: "
                f"pip install 'jax[tpu]' ({reason[:200]})."
            ) from error
        raise UserError(
            f"--topology={topology.name}: there is no such {kind} slice ({reason[:200]})."
        ) from error
    return list(found.devices)
