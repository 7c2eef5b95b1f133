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
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(")


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

    Those in the body of a loop count as often as the loop runs. One that TPUs' compiler has cut into pieces,
    to compute in between, is written several times with one channel, and counts once; they bear a chain_id.

    Raises:
      ValueError: a collective whose devices cannot be read, or one in a loop of unknown length.
    """
    found: list[Collective] = []
    channels: dict[str, int] = {}
    repeats, where = _repeats(hlo), ""
    for line in hlo.splitlines():
        start = _COMPUTATION.match(line)
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
        channel = re.search(r"channel_id=(\d+)", rest) if "chain_id=" in rest else None
        if channel and channel.group(1) in channels:
            place = channels[channel.group(1)]
            found[place] = found[place]._replace(repeats=min(found[place].repeats, repeats.get(where, 1)))
            continue
        if channel:
            channels[channel.group(1)] = len(found)
        found.append(
            Collective(
                kind,
                tuple(shape for _, shape in arrays),
                sum(bytes_of(dtype, shape) for dtype, shape in arrays),
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


def bytes_of(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of an array of a type as HLO names it, without padding; tokens have none."""
    bits = _BITS.search(dtype)
    width = 8 if dtype == "pred" else int(bits.group()) if bits else 0
    return -(-width * math.prod(shape) // 8)


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


def loop_lengths(hlo: str) -> dict[str, int | None]:
    """How often each loop of a program runs, by the computation that is its body; None: that is not known.

    XLA's compiler for CPUs notes it. Elsewhere it is read from the condition, "number < constant", as JAX's
    scans and loops over ranges count from 0 in steps of 1.
    """
    limits, lengths = _limits(hlo), {}
    for line in hlo.splitlines():
        body = re.search(r"\bbody=%?([\w.\-]+)", line)
        if body is None:
            continue
        noted = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
        condition = re.search(r"\bcondition=%?([\w.\-]+)", line)
        lengths[body.group(1)] = int(noted.group(1)) if noted else limits.get(condition.group(1))
    return lengths


def _limits(hlo: str) -> dict[str, int]:
    """The constant with which a computation compares, by the computation, where that is all it returns."""
    limits: dict[str, int] = {}
    constants: dict[str, int] = {}
    where = ""
    for line in hlo.splitlines():
        start = _COMPUTATION.match(line)
        if start:
            where, constants = start.group(1), {}
        constant = re.match(r"^\s+%?(\S+) = s32\[\]\S* constant\((\d+)\)", line)
        if constant:
            constants[constant.group(1)] = int(constant.group(2))
        compared = re.match(r"^\s+ROOT .* compare\([^,]*?([\w.\-]+), [^,]*?([\w.\-]+)\), direction=LT", line)
        if compared and compared.group(2) in constants:
            limits[where] = constants[compared.group(2)]
    return limits


def _repeats(hlo: str) -> dict[str, int | None]:
    """How often each computation that is the body of a loop runs; None: that is not known."""
    own = loop_lengths(hlo)
    parent: dict[str, str] = {}
    where = ""
    for line in hlo.splitlines():
        start = _COMPUTATION.match(line)
        if start:
            where = start.group(1)
        for called in re.findall(r"(?:body|to_apply|calls)=%?([\w.\-]+)", line):
            parent[called] = where
    total: dict[str, int | None] = {}
    for name in {*own, *parent}:
        product, current = 1, name
        while current and product is not None:
            factor = own.get(current, 1)
            product = None if factor is None else product * factor
            current = parent.get(current, "")
        total[name] = product
    return total
