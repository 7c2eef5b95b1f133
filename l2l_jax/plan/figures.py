"""The figures of one program on one kind of device."""

import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from l2l_jax.plan.chips import Topology
from l2l_jax.plan.collectives import collectives, summary
from l2l_jax.plan.program import Program
from l2l_jax.plan.work import Work

LARGEST = 10
"""How many temporary arrays and collectives are listed."""

QUICKLY = {"xla_backend_optimization_level": 0}
"""What XLA's CPU compiler need not do where only the collectives are read."""


class Planned(NamedTuple):
    """A program that is to be looked at.

    Attributes:
      name: Name of the program, such as "step 16x1".
      function: The jitted function.
      arguments: Shapes of the arguments, with shardings.
      groups: Parts of the arguments by name, for the memory of a device.
      work: Work of one device if only the rows of the batch are split.
      updated: The training state, which the program also reads and writes once.
      devices: Number of devices that run it together.
    """

    name: str
    function: Any
    arguments: tuple[Any, ...]
    groups: Mapping[str, Any]
    work: Work
    updated: Any
    devices: int


def figures(planned: Planned, topology: Topology) -> dict[str, Any]:
    """Memory, work, time and collectives of a program, JSON-able; bytes and operations are one device's.

    On TPUs all of it comes from the compiled program. For GPUs it is lowered, and XLA's partitioner run
    for as many CPU devices, so that the collectives are known; what memory holds and moves beyond the
    arguments and the least possible is not.
    """
    compiled, seconds = _compiled(planned, topology)
    program = Program(compiled.as_text())
    found = collectives(program)
    chip, memory = topology.chip, _arguments(planned)
    result: dict[str, Any] = {"program": planned.name, "source": "compiled" if topology.is_tpu else "lowered"}
    traffic, least = None, planned.work.product_bytes + 2 * _bytes(planned.updated, planned.devices)
    if topology.is_tpu:
        analysis = compiled.memory_analysis()
        traffic = program.traffic
        memory["temporaries"] = analysis.temp_size_in_bytes
        memory["results"] = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
        result["largest_temporaries"] = [
            {
                "bytes": moved.size,
                "arrays": [f"{a.dtype}{list(a.shape)}" for a in moved.instruction.arrays if not a.on_chip],
                "origin": moved.instruction.origin,
            }
            for moved in program.largest(LARGEST)
        ]
        result["bytes_accessed_by_xla"] = _xla(compiled, "bytes accessed")
    sent = sum(collective.sent for collective in found)
    times = {
        "compute": planned.work.flops / chip.flops,
        "memory": (least if traffic is None else traffic) / chip.bandwidth,
        "network": sent / chip.network,
    }
    ideal = max(planned.work.flops / chip.flops, least / chip.bandwidth)
    return result | {
        "memory": memory,
        "total_bytes": sum(memory.values()),
        "fits": sum(memory.values()) <= chip.memory,
        "flops": planned.work.flops,
        "traffic": traffic,
        "least_traffic": least,
        "sent": sent,
        "seconds": times,
        "binds": max(times, key=times.__getitem__),
        "roofline_seconds": max(times.values()),
        "times_ideal": max(times["compute"], times["memory"]) / ideal,
        "collectives": summary(found),
        "largest_collectives": [
            {"kind": c.kind, "bytes": c.size, "times": c.repeats, "devices": c.devices, "origin": c.origin}
            for c in sorted(found, key=lambda c: -c.size * c.repeats)[:LARGEST]
        ],
        "compile_seconds": seconds,
    }


def _compiled(planned: Planned, topology: Topology) -> tuple[Any, float]:
    if topology.is_tpu:
        lowered = planned.function.lower(*planned.arguments)
        start = time.perf_counter()
        return lowered.compile(), time.perf_counter() - start
    platform = "rocm" if topology.chip.name.startswith("AMD") else "cuda"
    start = time.perf_counter()
    jax.jit(planned.function).trace(*planned.arguments).lower(lowering_platforms=(platform,))
    seconds = time.perf_counter() - start
    return planned.function.lower(*planned.arguments).compile(QUICKLY), seconds


def _arguments(planned: Planned) -> dict[str, int]:
    return {name: _bytes(tree, planned.devices) for name, tree in planned.groups.items()}


def _bytes(tree: Any, devices: int) -> int:
    """Return the bytes of arrays on one device; those without a sharding are split over all devices."""

    def size(x: Any) -> int:
        shape, width = x.shape, np.dtype(x.dtype).itemsize
        if x.sharding is None:
            return math.prod(shape) * width // devices
        return math.prod(x.sharding.shard_shape(shape)) * width

    return sum(map(size, jax.tree.leaves(tree)))


def _xla(compiled: Any, name: str) -> float:
    costs = compiled.cost_analysis()
    return float((costs[0] if isinstance(costs, list) else costs)[name])
