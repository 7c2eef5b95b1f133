"""Collective operations of a compiled step, read from its HLO."""

import collections
import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from l2l_jax.plan.program import Instruction, Program

SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "collective-permute": lambda n: 1,
}
"""Bytes that each of n devices sends by ring algorithms, relative to the size of the result, by kind."""


class Collective(NamedTuple):
    """One collective operation of a program."""

    kind: str  # one of `SENT`
    shapes: tuple[tuple[int, ...], ...]  # shapes of the resulting arrays on each device
    size: int  # bytes of these arrays
    devices: int  # number of devices in a group
    repeats: int  # number of executions in one run of the program
    origin: str  # operation of the source program

    @property
    def sent(self) -> float:
        """Bytes that every device sends in one run of the program."""
        return self.repeats * self.size * SENT[self.kind](self.devices)


def collectives(program: Program) -> list[Collective]:
    """Return the collectives of a compiled program.

    Collectives in the body of a loop are counted once per iteration. A collective that the TPU compiler has
    split occurs several times with the same channel and a chain_id, and is counted once.

    Raises:
      ValueError: The devices of a collective cannot be read, or it is in a loop of unknown length.
    """
    result: list[Collective] = []
    places: dict[str, int] = {}
    for name, computation in program.computations.items():
        for instruction in computation.values():
            kind = instruction.operation.removesuffix("-start")
            if kind not in SENT:
                continue
            if math.isnan(repeats := program.repeats[name]):
                raise ValueError(f"a loop of unknown length around: {instruction.name}")
            channel = instruction.attribute(r"channel_id=(\d+)") if "chain_id=" in instruction.rest else ""
            if channel in places:
                first = result[places[channel]]
                result[places[channel]] = first._replace(repeats=min(first.repeats, int(repeats)))
                continue
            if channel:
                places[channel] = len(result)
            result.append(_collective(kind, instruction, int(repeats)))
    return result


def _collective(kind: str, instruction: Instruction, repeats: int) -> Collective:
    arrays = instruction.arrays
    if instruction.operation == "collective-permute-start":  # (from, to, …)
        arrays = arrays[1:2]
    elif instruction.operation in ("all-gather-start", "reduce-scatter-start"):  # (operands, results)
        arrays = arrays[len(arrays) // 2 :]
    shapes, size = tuple(array.shape for array in arrays), sum(array.size for array in arrays)
    return Collective(kind, shapes, size, _group_size(instruction.rest), repeats, instruction.origin)


def summary(found: Iterable[Collective]) -> dict[str, Any]:
    """Return `{kind: {"count", "bytes_sent"}}`: operations per run, and bytes that each device sends."""
    table: dict[str, Any] = collections.defaultdict(lambda: {"count": 0, "bytes_sent": 0})
    for collective in found:
        table[collective.kind]["count"] += collective.repeats
        table[collective.kind]["bytes_sent"] += round(collective.sent)
    return dict(table)


def _group_size(line: str) -> int:
    """Return the number of devices in one group, from any of HLO's three notations for groups."""
    if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,]*\})", line):
        return listed.group(1).count(",") + 1
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", line):
        return int(iota.group(1))
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh.group(1)))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh.group(2))
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    raise ValueError(f"cannot read the devices of {line.strip()[:200]}")
