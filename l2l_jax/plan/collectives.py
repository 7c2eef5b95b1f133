"""Collectives of a compiled step, read from its HLO."""

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
"""Kinds, and what each of n devices sends by the algorithms on a ring, in sizes of the result."""


class Collective(NamedTuple):
    """One collective operation of a program."""

    kind: str  # one of `SENT`
    shapes: tuple[tuple[int, ...], ...]  # of the arrays that each device has afterwards
    size: int  # bytes of these arrays
    devices: int  # in a group
    repeats: int  # in a run of the program
    origin: str  # operation of the source that it comes from

    @property
    def sent(self) -> float:
        """Bytes that every device sends in a run."""
        return self.repeats * self.size * SENT[self.kind](self.devices)


def collectives(program: Program) -> list[Collective]:
    """Return the collectives of a compiled program.

    Those in the body of a loop count as often as the loop runs. One that the TPU compiler has cut into pieces
    is written several times with one channel and a chain_id, and counts once.

    Raises:
      ValueError: The devices of a collective cannot be read, or it is in a loop of unknown length.
    """
    found: list[Collective] = []
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
                whole = found[places[channel]]
                found[places[channel]] = whole._replace(repeats=min(whole.repeats, int(repeats)))
                continue
            if channel:
                places[channel] = len(found)
            found.append(_collective(kind, instruction, int(repeats)))
    return found


def _collective(kind: str, instruction: Instruction, repeats: int) -> Collective:
    arrays = instruction.arrays
    if instruction.operation == "collective-permute-start":  # (from, to, …)
        arrays = arrays[1:2]
    elif instruction.operation in ("all-gather-start", "reduce-scatter-start"):  # (operands, results)
        arrays = arrays[len(arrays) // 2 :]
    shapes, size = tuple(array.shape for array in arrays), sum(array.size for array in arrays)
    return Collective(kind, shapes, size, _group_size(instruction.rest), repeats, instruction.origin)


def summary(found: Iterable[Collective]) -> dict[str, Any]:
    """Return `{kind: {"count", "bytes_sent"}}`: operations in a run, and bytes that each device sends."""
    table: dict[str, Any] = collections.defaultdict(lambda: {"count": 0, "bytes_sent": 0})
    for collective in found:
        table[collective.kind]["count"] += collective.repeats
        table[collective.kind]["bytes_sent"] += round(collective.sent)
    return dict(table)


def _group_size(line: str) -> int:
    """Return the number of devices in one group, from any of the three ways in which HLO names groups."""
    if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,]*\})", line):
        return listed.group(1).count(",") + 1
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", line):
        return int(iota.group(1))
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh.group(1)))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh.group(2))
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    raise ValueError(f"which devices? {line.strip()[:200]}")
