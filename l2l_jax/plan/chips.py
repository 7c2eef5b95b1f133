"""Accelerator specifications, and abstract devices to compile for."""

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from l2l_jax.errors import UserError


class Chip(NamedTuple):
    """Manufacturer's specifications of one device."""

    name: str
    flops: float  # bfloat16 operations per second of the matrix units
    memory: float  # bytes of main memory
    bandwidth: float  # bytes per second of main memory
    network: float  # bytes per second sent in a ring of devices: by two TPU links, or NVLink in one direction
    dimensions: int  # number of dimensions of a topology; 1 for GPUs
    cores: int = 1  # cores of a chip that JAX treats as one device


CHIPS: Mapping[str, Chip] = {
    # cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e
    "v4": Chip("TPU v4", 275e12, 32 * 2**30, 1200e9, 100e9, 3, cores=2),
    "v5e": Chip("TPU v5e", 197e12, 16e9, 819e9, 100e9, 2),
    "v5p": Chip("TPU v5p", 459e12, 95e9, 2765e9, 200e9, 3, cores=2),
    "v6e": Chip("TPU v6e", 918e12, 32e9, 1640e9, 200e9, 2),
    # data sheets, without sparsity; gpus/ has the compiler's target configs
    "a100": Chip("NVIDIA A100 SXM 80 GB", 312e12, 80e9, 2039e9, 300e9, 1),
    "h100": Chip("NVIDIA H100 SXM", 989e12, 80e9, 3350e9, 450e9, 1),
    "h200": Chip("NVIDIA H200 SXM", 989e12, 141e9, 4800e9, 450e9, 1),
}
"""Devices by the first part of a topology name."""

GPUS = pathlib.Path(__file__).with_name("gpus")


class Topology(NamedTuple):
    """A set of devices of one kind, with a name such as "v5e:4x4"."""

    name: str
    chip: Chip
    sides: tuple[int, ...]  # sides of a TPU slice, or the number of GPUs

    @property
    def is_gpu(self) -> bool:
        """True for GPUs of one host."""
        return self.chip.dimensions == 1


def parse_topology(name: str) -> Topology:
    """Parse a topology such as "v5e:4x4", "v4:2x2x4" or "h100:8".

    Raises:
      UserError: The device is unknown, or the number of sides is wrong.
    """
    kind, _, size = name.partition(":")
    if kind not in CHIPS:
        raise UserError(
            f"--topology={name}: {kind!r} is not one of {', '.join(CHIPS)}. A topology is one of these, a "
            "colon and its sides: v5e:4x4, v4:2x2x4; for GPUs their number: h100:8."
        )
    chip = CHIPS[kind]
    sides = tuple(map(int, size.split("x"))) if re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", size) else ()
    if len(sides) != chip.dimensions:
        expected = {1: "a number of devices, as 8", 2: "two sides, as 4x4", 3: "three sides, as 2x2x4"}
        raise UserError(f"--topology={name}: {chip.name} has {expected[chip.dimensions]}.")
    return Topology(name, chip, sides)


def prepare(topology: Topology) -> None:
    """Set environment variables that JAX and the compilers read at startup; call it before importing JAX.

    The programs are only compiled; JAX itself runs on the CPU.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # do not query the cloud's metadata server
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chips are used
    if topology.is_gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
        os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # no driver is needed
        # Autotuning, which Triton GEMMs require, would time kernels on a device.
        xla_flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{xla_flags} --xla_gpu_enable_triton_gemm=false --xla_gpu_autotune_level=0"


def described(topology: Topology) -> list[Any]:
    """Return abstract devices of a topology, which can be compiled for but cannot run programs.

    Raises:
      UserError: The compiler is not installed, or does not support the slice.
    """
    import jax
    from jax.experimental import topologies

    kind = topology.name.partition(":")[0]
    platform, package = ("cuda", "jax[cuda12]") if topology.is_gpu else ("tpu", "jax[tpu]")
    options: dict[str, Any]
    if topology.is_gpu:
        target = (GPUS / f"{kind}.textproto").read_text(encoding="utf-8")
        options = {"topology": f"1x1x{topology.sides[0]}", "target_config": target}
    else:
        options = {"topology_name": topology.name, "num_slices": 1}
        options |= {"chip_config_name": "megacore"} if topology.chip.cores > 1 else {}
    try:
        return list(topologies.get_topology_desc(platform=platform, **options).devices)
    except (jax.errors.JaxRuntimeError, RuntimeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        if "INVALID_ARGUMENT" not in reason:
            raise UserError(
                f"Compiling for {topology.chip.name} needs a compiler that is not installed or cannot be "
                f"loaded: pip install '{package}' ({reason[:200]})."
            ) from error
        raise UserError(
            f"--topology={topology.name}: there is no such {kind} slice ({reason[:200]})."
        ) from error
