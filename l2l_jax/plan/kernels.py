"""Kernels that a GPU executes one after the other in a compiled program, their bytes and operations."""

import collections
import math
import re
from typing import Any

from l2l_jax.plan.chips import Chip
from l2l_jax.plan.collectives import SENT
from l2l_jax.plan.program import Instruction, Moved, Program

LIBRARIES = {"__cublas": "products", "__cudnn$conv": "convolutions", "__cudnn$f": "attention"}
"""Starts of the functions that call libraries."""


def kernel_table(program: Program, flops: float, chip: Chip) -> list[dict[str, Any]]:
    """Return by kind of kernel how many are executed, their bytes, operations and time.

    A kernel takes the longer of its bytes at full bandwidth and its operations at full rate. XLA does not
    say the operations of convolutions and attention: these kernels share what products leave of `flops`.

    Returns:
      Of each kind {"kind", "count", "bytes", "flops", "seconds"}, the slowest first; `seconds` is the sum
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
    """Return the kind of an instruction's kernel; "" for what is no kernel of the device's own."""
    operation = instruction.operation
    if operation.removesuffix("-start") in SENT or operation.endswith("-done"):
        return ""
    if operation == "custom-call":
        starts = (kind for start, kind in LIBRARIES.items() if instruction.target.startswith(start))
        return next(starts, "other libraries")
    return {"fusion": "fusions", "copy": "copies", "copy-start": "copies"}.get(operation, "others")


def _product_flops(instruction: Instruction, operands: dict[str, Instruction]) -> float:
    """Return the operations of a product of [batch, m, k] and [batch, k, n]: 2 · batch · m · k · n."""
    left, right = (operands[name].arrays[0] for name in instruction.operands[:2])
    axes = re.findall(r"\d+", instruction.attribute(r'"lhs_batch_dimensions":\[([^\]]*)\]'))
    batch = math.prod(left.shape[int(axis)] for axis in axes)
    sizes = (math.prod(array.shape) for array in (left, right, instruction.arrays[0]))
    return 2 * math.sqrt(math.prod(sizes) / batch)
