"""What a compiled step makes the devices tell one another, read from its HLO."""

import collections
import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from l2l_jax.plan.program import Instruction, Program

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class Collective(NamedTuple):
    """One collective operation of a program.

    Attributes:
      kind: One of `KINDS`.
      shapes: Shapes of the arrays that each device has afterwards.
      size: Bytes of these arrays.
      devices: Number of devices in a group.
      repeats: Number of executions in a run of the program.
      origin: Operation of the source that it comes from.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    size: int
    devices: int
    repeats: int
    origin: str

    @property
    def sent(self) -> float:
        """Bytes that every device sends in a run, by the algorithms on a ring.

        With n devices and arrays of B bytes: all-reduce 2 B (n − 1)/n, all-gather and all-to-all
        B (n − 1)/n, reduce-scatter B (n − 1) for a result of B, a permutation B.
        """
        n = self.devices
        share = {
            "all-reduce": 2 * (n - 1) / n,
            "all-gather": (n - 1) / n,
            "all-to-all": (n - 1) / n,
            "reduce-scatter": n - 1,
            "collective-permute": 1,
        }
        return self.repeats * self.size * share[self.kind]


def collectives(program: Program) -> list[Collective]:
    """Return the collectives of a compiled program.

    Those in the body of a loop count as often as the loop runs. One that the TPU compiler has cut into pieces
    is written several times with one channel and a chain_id, and counts once.

    Raises:
      ValueError: The devices of a collective cannot be read, or it is in a loop of unknown length.
    """
    found: list[Collective] = []
    channels: dict[str, int] = {}
    for name, computation in program.computations.items():
        repeats = program.repeats.get(name, 1)
        for instruction in computation.values():
            kind = instruction.operation.removesuffix("-start")
            if kind not in KINDS:
                continue
            if repeats is None:
                raise ValueError(f"a loop of unknown length around: {instruction.name}")
            rest = instruction.rest
            channel = re.search(r"channel_id=(\d+)", rest) if "chain_id=" in rest else None
            if channel and channel.group(1) in channels:
                place = channels[channel.group(1)]
                found[place] = found[place]._replace(repeats=min(found[place].repeats, repeats))
                continue
            if channel:
                channels[channel.group(1)] = len(found)
            found.append(_collective(kind, instruction, repeats))
    return found


def _collective(kind: str, instruction: Instruction, repeats: int) -> Collective:
    arrays = instruction.arrays
    if instruction.operation.endswith("-start") and len(arrays) > 1:
        arrays = arrays[len(arrays) // 2 :]  # operands, then results
    return Collective(
        kind,
        tuple(array.shape for array in arrays),
        sum(array.size for array in arrays),
        _group_size(instruction.rest),
        repeats,
        instruction.origin,
    )


def summary(found: Iterable[Collective]) -> dict[str, Any]:
    """Return `{kind: {"count", "bytes_sent"}}`: operations in a run, and bytes that each device sends."""
    table: dict[str, Any] = collections.defaultdict(lambda: {"count": 0, "bytes_sent": 0})
    for collective in found:
        table[collective.kind]["count"] += collective.repeats
        table[collective.kind]["bytes_sent"] += round(collective.sent)
    return dict(table)


def _group_size(line: str) -> int:
    """Return the number of devices in one group, from any of the three ways in which HLO names groups."""
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,]*\})", line)
    if listed:
        return listed.group(1).count(",") + 1
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]<=", line)
    if iota:
        return int(iota.group(1))
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line)
    if mesh:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh.group(1)))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh.group(2))
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    raise ValueError(f"which devices? {line.strip()[:200]}")
