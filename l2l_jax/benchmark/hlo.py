"""What a compiled step makes the devices tell one another, read from its HLO."""

import collections
import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_INSTRUCTION = re.compile(rf"^\s*(?:ROOT )?%?\S+ = (.+?) ({'|'.join(KINDS)})(?:-start)?\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*)(?:e\d\w+)?\[([\d,]*)\]")
_BITS = re.compile(r"\d+")


class Collective(NamedTuple):
    """One collective operation of a program.

    Attributes:
      kind: one of `KINDS`.
      shapes: of the arrays that each device has afterwards.
      size: their bytes.
      devices: how many take part in one group.
      repeats: how often a run of the program executes it.
      origin: the operation of the source that it comes from.
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


def collectives(hlo: str) -> list[Collective]:
    """The collectives of a compiled program, `compiled.as_text()`.

    Those in the body of a loop count as often as the loop runs; XLA notes how often that is.

    Raises:
      ValueError: a collective whose devices cannot be read, or one in a loop of unknown length.
    """
    found, repeats, where = [], _repeats(hlo), ""
    for line in hlo.splitlines():
        start = re.match(r"^(?:ENTRY )?%?([\w.\-]+) \(", line)
        if start:
            where = start.group(1)
        match = _INSTRUCTION.match(line)
        if match is None:
            continue
        result, kind, rest = match.groups()
        arrays = [
            (dtype, tuple(map(int, re.findall(r"\d+", dims)))) for dtype, dims in _ARRAY.findall(result)
        ]
        if f"{kind}-start(" in line and len(arrays) > 1:
            arrays = arrays[len(arrays) // 2 :]  # operands, then results
        if repeats.get(where, 1) is None:
            raise ValueError(f"a loop of unknown length around: {line.strip()[:200]}")
        origin = re.search(r'op_name="([^"]*)"', rest)
        found.append(
            Collective(
                kind,
                tuple(shape for _, shape in arrays),
                sum(_bytes(dtype) * math.prod(shape) for dtype, shape in arrays),
                _group_size(line),
                repeats.get(where, 1),
                origin.group(1) if origin else "",
            )
        )
    return found


def summary(found: Iterable[Collective]) -> dict[str, Any]:
    """`{kind: {"count", "bytes_sent"}}`: operations in a run, and bytes that each device sends."""
    table: dict[str, Any] = collections.defaultdict(lambda: {"count": 0, "bytes_sent": 0})
    for collective in found:
        table[collective.kind]["count"] += collective.repeats
        table[collective.kind]["bytes_sent"] += round(collective.sent)
    return dict(table)


def _bytes(dtype: str) -> int:
    if dtype == "pred":
        return 1
    return max(1, int(_BITS.search(dtype).group()) // 8)


def _group_size(line: str) -> int:
    """Devices in one group, from any of the three ways in which HLO names groups."""
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


def _repeats(hlo: str) -> dict[str, int | None]:
    """How often each computation that is the body of a loop runs; None: XLA does not know."""
    own: dict[str, int | None] = {}
    parent: dict[str, str] = {}
    where = ""
    for line in hlo.splitlines():
        start = re.match(r"^(?:ENTRY )?%?([\w.\-]+) \(", line)
        if start:
            where = start.group(1)
        for called in re.findall(r"(?:body|to_apply|calls)=%?([\w.\-]+)", line):
            parent[called] = where
        body = re.search(r"body=%?([\w.\-]+)", line)
        if body:
            count = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            own[body.group(1)] = int(count.group(1)) if count else None
    total: dict[str, int | None] = {}
    for name in {*own, *parent}:
        product, current = 1, name
        while current and product is not None:
            factor = own.get(current, 1)
            product = None if factor is None else product * factor
            current = parent.get(current, "")
        total[name] = product
    return total
