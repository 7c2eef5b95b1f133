"""Cost estimates of a program on a device, and tables of them."""

import collections
import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tabulate import tabulate

from l2l_jax.plan.chips import Chip, Topology
from l2l_jax.plan.collectives import SENT, collectives, summary
from l2l_jax.plan.program import Instruction, Moved, Program
from l2l_jax.plan.work import Work
from l2l_jax.train.sharding import device_bytes

LARGEST = 10  # number of temporary arrays and collectives to list

LIBRARIES = {"__cublas": "products", "__cudnn$conv": "convolutions", "__cudnn$f": "attention"}
"""Kinds of library calls, by prefix of the custom-call target."""

LIBRARY_KINDS = (*LIBRARIES.values(), "other libraries")

TPU_OPTIONS = {"xla_jf_convolution_performance_target": "0.5"}
"""Options that end the compiler's window search for convolutions early, without effect on memory or traffic.

Channel counts that are not multiples of 128 never reach the default target, and every window is then tried.
"""

QUICK_OPTIONS = {"exec_time_optimization_effort": -1.0}


class Planned(NamedTuple):
    """A program to compile, such as "step, 16x1"."""

    name: str
    function: Any  # jitted function
    arguments: tuple[Any, ...]  # shapes with shardings
    groups: Mapping[str, Any]  # parts of the arguments by name, to report memory per device
    work: Work  # work of one device if only the rows of the batch are split
    updated: Any  # the training state, which the program reads and writes once in addition
    devices: int  # number of devices that run it


def program_costs(planned: Planned, topology: Topology, quick: bool = False) -> dict[str, Any]:
    """Compile a program and return its memory, work, time and collectives, JSON-serializable.

    Bytes and operations are per device.

    Args:
      planned: Program to compile.
      topology: Target devices.
      quick: Whether to reduce optimization; temporaries and memory traffic are then overestimated.
    """
    lowered = planned.function.lower(*planned.arguments)
    start = time.perf_counter()
    options = {} if topology.is_gpu else TPU_OPTIONS
    compiled = lowered.compile(compiler_options={**options, **(QUICK_OPTIONS if quick else {})})
    seconds = time.perf_counter() - start
    program, chip, flops = Program(compiled.as_text()), topology.chip, planned.work.flops
    operations, analysis = collectives(program), compiled.memory_analysis()
    memory = {name: device_bytes(tree, planned.devices) for name, tree in planned.groups.items()}
    memory["temporaries"] = analysis.temp_size_in_bytes
    memory["results"] = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    traffic, sent = program.traffic, sum(collective.sent for collective in operations)
    kernels = kernel_table(program, flops, chip) if topology.is_gpu else []
    least, least_in_turn = _least(program, planned, kernels, chip)
    times = {
        "compute": flops / chip.flops,
        "memory": traffic / chip.bandwidth,
        "network": sent / chip.network,
    }
    ideal, in_turn = max(times["compute"], least / chip.bandwidth), sum(row["seconds"] for row in kernels)
    return {
        "program": planned.name,
        "memory": memory,
        "total_bytes": sum(memory.values()),
        "fits": sum(memory.values()) <= chip.memory,
        "flops": flops,
        "traffic": traffic,
        "least_traffic": least,
        "sent": sent,
        "seconds": times,
        "limit": max(times, key=times.__getitem__),
        "roofline_seconds": max(in_turn, *times.values()),
        "times_ideal": max(times["compute"], times["memory"]) / ideal,
        "kernel_seconds": in_turn,
        "kernels_times_ideal": in_turn / least_in_turn if least_in_turn else 1.0,
        "kernels": kernels,
        "collectives": summary(operations),
        "largest_collectives": [
            {"kind": c.kind, "bytes": c.size, "times": c.repeats, "devices": c.devices, "origin": c.origin}
            for c in sorted(operations, key=lambda c: -c.size * c.repeats)[:LARGEST]
        ],
        "largest_temporaries": [
            {
                "bytes": moved.size,
                "arrays": [f"{a.dtype}{list(a.shape)}" for a in moved.instruction.arrays if not a.on_chip],
                "origin": moved.instruction.origin,
            }
            for moved in program.largest(LARGEST)
        ],
        "compile_seconds": seconds,
    }


def _least(
    program: Program, planned: Planned, kernels: Sequence[Mapping[str, Any]], chip: Chip
) -> tuple[float, float]:
    """Return the minimum traffic of a program, and the minimum time of a GPU's kernels run sequentially.

    On a GPU, no data stays on chip between kernels: results that no library computes pass through main memory
    once more. On other devices they may be fused with a product.
    """
    state = 2 * device_bytes(planned.updated, planned.devices)
    products = planned.work.product_bytes + state
    if not kernels:
        return products, 0.0
    libraries = [row for row in kernels if row["kind"] in LIBRARY_KINDS]
    others = state + program.handed_over(lambda instruction: _kind(instruction) in LIBRARY_KINDS)
    seconds = sum(row["seconds"] for row in libraries) + others / chip.bandwidth
    return max(products, sum(row["bytes"] for row in libraries) + others), seconds


def kernel_table(program: Program, flops: float, chip: Chip) -> list[dict[str, Any]]:
    """Return the number of executions, bytes, operations and time of each kind of kernel.

    The time of a kernel is the maximum of its bytes at full bandwidth and its operations at full rate. XLA
    does not report the operations of convolutions and attention; these share the `flops` that products leave.

    Returns:
      A row {"kind", "count", "bytes", "flops", "seconds"} for each kind, slowest first; `seconds` is the sum
      over kernels.
    """
    groups: dict[str, list[Moved]] = collections.defaultdict(list)
    for moved in program.moved:
        if kind := _kind(moved.instruction):
            groups[kind].append(moved)
    operands = {n: i for computation in program.computations.values() for n, i in computation.items()}
    rows: list[dict[str, Any]] = []
    for kind, members in groups.items():
        seconds = done = 0.0
        for moved in members:
            own = moved.repeats * _product_flops(moved.instruction, operands) if kind == "products" else 0
            done += own
            seconds += max(moved.size / chip.bandwidth, own / chip.flops)
        count, size = sum(moved.repeats for moved in members), sum(moved.size for moved in members)
        rows.append({"kind": kind, "count": count, "bytes": size, "flops": done, "seconds": seconds})
    others = [row for row in rows if row["kind"] in ("convolutions", "attention")]
    left = max(0.0, flops - sum(row["flops"] for row in rows))
    for row in others:
        row["flops"] = left * row["bytes"] / sum(other["bytes"] for other in others)
        row["seconds"] = max(row["seconds"], row["flops"] / chip.flops)
    return sorted(rows, key=lambda row: -row["seconds"])


def _kind(instruction: Instruction) -> str:
    """Return the kind of an instruction's kernel; "" for collectives and other non-kernels."""
    operation = instruction.operation
    if operation.removesuffix("-start") in SENT or operation.endswith("-done"):
        return ""
    if operation == "custom-call":
        starts = (kind for start, kind in LIBRARIES.items() if instruction.target.startswith(start))
        return next(starts, "other libraries")
    return {"fusion": "fusions", "copy": "copies", "copy-start": "copies"}.get(operation, "others")


def _product_flops(instruction: Instruction, operands: dict[str, Instruction]) -> float:
    """Return the operation count of a product of [batch, m, k] and [batch, k, n]: 2 · batch · m · k · n."""
    left, right = (operands[name].arrays[0] for name in instruction.operands[:2])
    axes = re.findall(r"\d+", instruction.attribute(r'"lhs_batch_dimensions":\[([^\]]*)\]'))
    batch = math.prod(left.shape[int(axis)] for axis in axes)
    sizes = (math.prod(array.shape) for array in (left, right, instruction.arrays[0]))
    return 2 * math.sqrt(math.prod(sizes) / batch)


def heading(topology: Topology, stage: str, config_name: str, batch_size: int, devices: int) -> str:
    """Format a heading with the config, the phase and the target devices."""
    chip = topology.chip
    facts = (
        f"{devices} × {chip.name}: {chip.flops / 1e12:.0f} TFLOP/s bfloat16, {chip.memory / 1e9:.0f} GB at "
        f"{chip.bandwidth / 1e9:.0f} GB/s, network {chip.network / 1e9:.0f} GB/s a device"
    )
    return f"{config_name}, {stage}, batch {batch_size}\n{facts}\n"


def program_text(row: Mapping[str, Any], topology: Topology) -> str:
    """Format all costs of a program."""
    fits = "fits" if row["fits"] else "DOES NOT FIT"
    parts = [[name, size / 1e6] for name, size in row["memory"].items()]
    parts.append([f"together: {fits} {topology.chip.memory / 1e9:.0f} GB", row["total_bytes"] / 1e6])
    amounts = {
        "compute": f"{row['flops'] / 1e12:.3f} TFLOP",
        "memory": f"{row['traffic'] / 1e9:.2f} GB, at least {row['least_traffic'] / 1e9:.2f}",
        "network": f"{row['sent'] / 1e6:.1f} MB sent",
    }
    times = [[name, amount, 1000 * row["seconds"][name]] for name, amount in amounts.items()]
    kernels = [
        [k["kind"], k["count"], k["bytes"] / 1e9, k["flops"] / 1e12, 1000 * k["seconds"]]
        for k in row["kernels"]
    ]
    sent = [[c["kind"], c["bytes"] / 1e6, c["times"], c["origin"]] for c in row["largest_collectives"]]
    kept = [[", ".join(t["arrays"][:3]), t["bytes"] / 1e6, t["origin"]] for t in row["largest_temporaries"]]
    in_turn = (
        f"Kernels in turn take {1000 * row['kernel_seconds']:.1f} ms, {row['kernels_times_ideal']:.2f} times "
        "those of libraries and the least memory around them. "
    )
    tables = [
        _table(parts, ["a device holds", "MB"], ",.1f"),
        _table(times, ["", "amount", "ms at full rate"]),
        f"Limited by {row['limit']}, {row['times_ideal']:.2f} times the larger of compute and least memory. "
        + in_turn * bool(kernels)
        + f"Compiled in {row['compile_seconds']:.0f} s.",
        _table(kernels, ["kernels", "count", "GB", "TFLOP", "ms"]),
        _table(sent, ["largest collectives", "MB", "times", "from"]),
        _table(kept, ["largest temporaries", "MB", "from"]),
    ]
    return f"## {row['program']}\n\n" + "\n\n".join(filter(None, tables)) + "\n"


def _table(rows: Sequence[Sequence[Any]], header: Sequence[str], form: str = ".2f") -> str:
    return tabulate(rows, header, tablefmt="github", floatfmt=form) if rows else ""
