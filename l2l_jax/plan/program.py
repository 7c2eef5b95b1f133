"""A compiled program as text (HLO): its instructions, what they move through memory, what they keep there.

XLA's own sum, "bytes accessed", also counts what stays in the on-chip memory (VMEM of a TPU), and the body of
a loop once. Here an array counts where it lies in main memory, and as often as the program runs.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_OPERATION = re.compile(r"^ ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d\w+)?)\[([\d,]*)\](?:\{([^}]*)\})?")
_ON_CHIP = re.compile(r"S\(([1-46-9]|\d\d+)\)")  # 0 and none: main memory; 5: the host's

FREE = (
    "parameter", "get-tuple-element", "tuple", "bitcast", "constant", "iota", "after-all", "opt-barrier",
    "partition-id", "replica-id", "optimization-barrier", "domain", "copy-done", "slice-done", "async-update",
    "async-done", "all-reduce-done", "all-gather-done", "collective-permute-done", "send-done", "recv-done",
)  # fmt: skip
"""Operations that move nothing, or what their other half has moved."""

ALIASES = ("ConcatBitcast", "AssumeGatherIndicesInBound", "AllocateBuffer")
"""Targets of custom calls that move nothing."""


class Array(NamedTuple):
    """One array of a result: type, shape, whether it lies in on-chip memory."""

    dtype: str
    shape: tuple[int, ...]
    on_chip: bool

    @property
    def size(self) -> int:
        """Its bytes, without padding."""
        bits = re.search(r"\d+", self.dtype)
        width = 8 if self.dtype == "pred" else int(bits.group()) if bits else 0  # tokens have none
        return -(-width * math.prod(self.shape) // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program.

    Attributes:
      name: Name, unique in its computation.
      operation: Kind of operation, such as "fusion".
      arrays: Arrays of the result.
      operands: Names of instructions of the same computation.
      rest: What follows the operands; of a parameter or constant, its number or value.
      is_root: Whether it is the result of its computation.
    """

    name: str
    operation: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    rest: str
    is_root: bool

    @property
    def origin(self) -> str:
        """The operation of the source that it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found.group(1) if found else ""

    @property
    def in_memory(self) -> int:
        """Bytes of its result that lie in main memory."""
        return sum(array.size for array in self.arrays if not array.on_chip)

    @property
    def kept(self) -> int:
        """`in_memory` without the operands that the first half of an asynchronous operation lists."""
        if self.operation == "copy-start":
            own = self.arrays[:1]
        elif self.operation == "slice-start":
            own = self.arrays[1:2]
        elif self.operation.endswith("-start"):
            own = self.arrays[len(self.arrays) // 2 :]
        else:
            own = self.arrays
        return sum(array.size for array in own if not array.on_chip)

    def called(self, attribute: str) -> str:
        """Return the computation that an attribute such as "body" names; "" if there is none."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.rest)
        return found.group(1) if found else ""

    @property
    def calls(self) -> list[tuple[str, str]]:
        """Attributes that name computations, and the names."""
        single = re.findall(r"\b(body|to_apply|calls|(?:true|false)_computation)=%?([\w.\-]+)", self.rest)
        listed = re.search(r"branch_computations=\{([^}]*)\}", self.rest)
        names = re.findall(r"[\w.\-]+", listed.group(1)) if listed else []
        return single + [("branch_computations", name) for name in names]


Computation = Mapping[str, Instruction]


class Program:
    """A compiled program, from `compiled.as_text()`."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        current = self.computations.setdefault("", {})
        for line in text.splitlines():
            start = None if line.startswith(" ") else _COMPUTATION.match(line)
            if start:
                current = self.computations.setdefault(start.group(2), {})
                self.entry = start.group(2) if start.group(1) else self.entry
            elif (instruction := _parsed(line)) is not None:
                current[instruction.name] = instruction

    @functools.cached_property
    def repeats(self) -> Mapping[str, int | None]:
        """How often a run of the program executes each computation; None: in a loop of unknown length."""
        found: dict[str, int | None] = {self.entry: 1}
        waiting = [self.entry]
        while waiting:
            name = waiting.pop()
            for instruction in self.computations[name].values():
                for attribute, called in instruction.calls:
                    length = self.loop_length(instruction) if attribute == "body" else 1
                    here = found[name]
                    if called in self.computations and called not in found:
                        found[called] = None if here is None or length is None else here * length
                        waiting.append(called)
        return found

    def loop_length(self, loop: Instruction) -> int | None:
        """Return how often a loop runs; None where that is not known.

        XLA's CPU compiler notes it. Elsewhere it is read from the condition "number < constant", since JAX's
        scans and loops over ranges count from 0 in steps of 1.
        """
        noted = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest)
        if noted:
            return int(noted.group(1))
        condition = self.computations.get(loop.called("condition"), {})
        root = next((i for i in condition.values() if i.is_root), None)
        if root is None or root.operation != "compare" or "direction=LT" not in root.rest:
            return None
        limit = condition.get(root.operands[1])
        value = re.match(r"(\d+)\)", limit.rest) if limit and limit.operation == "constant" else None
        return int(value.group(1)) if value else None

    @functools.cached_property
    def moved(self) -> list["Moved"]:
        """What each instruction moves in one run, in the order of the program.

        Raises:
          ValueError: A loop of unknown length.
        """
        return list(self._walk(self.entry, 1))

    @property
    def traffic(self) -> float:
        """Bytes that one run moves through main memory."""
        return sum(moved.size for moved in self.moved)

    def largest(self, count: int) -> list["Moved"]:
        """Return the largest results in main memory, each origin once, without those that are returned."""
        found: dict[tuple[str, int], Moved] = {}
        results = self._results()
        for moved in self.moved:
            instruction = moved.instruction
            if instruction.kept and instruction.name not in results:
                key = instruction.origin or instruction.name, instruction.kept
                found.setdefault(key, moved._replace(size=instruction.kept))
        return sorted(found.values(), key=lambda moved: -moved.size)[:count]

    def _results(self) -> set[str]:
        """Return the names of the instructions whose results the program returns."""
        entry = self.computations[self.entry]
        root = next(instruction for instruction in entry.values() if instruction.is_root)
        names, waiting = {root.name}, list(root.operands)
        while waiting:
            name = waiting.pop()
            names.add(name)
            if entry[name].operation in ("bitcast", "get-tuple-element", "copy-done"):
                waiting += entry[name].operands
        return names

    def _walk(self, name: str, repeats: int) -> Iterator["Moved"]:
        computation = self.computations[name]
        for instruction in computation.values():
            operation = instruction.operation
            if operation == "while":
                length = self.loop_length(instruction)
                if length is None:
                    raise ValueError(f"a loop of unknown length: {instruction.name}")
                yield from self._walk(instruction.called("body"), repeats * length)
            elif operation == "call":
                yield from self._walk(instruction.called("to_apply"), repeats)
            elif operation == "async-start" and instruction.called("calls"):
                yield from self._walk(instruction.called("calls"), repeats)
            elif operation == "conditional":
                yield from self._longest_branch(instruction, repeats)
            elif operation not in FREE and not any(f'"{name}"' in instruction.rest for name in ALIASES):
                size = self._moves(computation, instruction)
                yield Moved(instruction, size * repeats, repeats)

    def _longest_branch(self, instruction: Instruction, repeats: int) -> list["Moved"]:
        branches = [list(self._walk(name, repeats)) for _, name in instruction.calls]
        return max(branches, key=lambda branch: sum(moved.size for moved in branch))

    def _moves(self, computation: Computation, instruction: Instruction) -> int:
        """Return the bytes that one execution reads from and writes to main memory."""
        operation, arrays = instruction.operation, instruction.arrays
        if operation == "copy-start":  # (to, from, …)
            return sum(array.size for array in arrays[:2] if not array.on_chip)
        operands = [computation[name] for name in instruction.operands if name in computation]
        if operation == "slice-start":  # ((from), to, …)
            return arrays[1].size * ((not arrays[0].on_chip) + (not arrays[1].on_chip))
        if operation.endswith("-start"):  # a collective: (operands, results)
            return instruction.in_memory
        if operation in ("dynamic-slice", "slice", "gather"):
            return instruction.in_memory + (arrays[0].size if operands[0].in_memory else 0)
        if operation == "dynamic-update-slice":
            return 2 * operands[1].arrays[0].size if instruction.in_memory else operands[1].in_memory
        if operation != "fusion":
            return sum(operand.in_memory for operand in operands) + instruction.in_memory
        fused = self.computations[instruction.called("calls")]
        read = sum(
            min(operand.in_memory, self._read(fused, number, operand.in_memory))
            for number, operand in enumerate(operands)
            if operand.in_memory
        )
        return read + self._written(fused, instruction)

    def _read(self, fused: Computation, number: int, whole: int) -> int:
        """Return how many of the `whole` bytes of an argument a fusion reads.

        These are the slices if it only slices the argument, and none of what it updates in place. A fusion
        may be within the fusion.
        """
        parameter = next(
            (i for i in fused.values() if i.operation == "parameter" and i.rest.startswith(f"{number})")),
            None,
        )
        users = list(_users(fused, parameter.name)) if parameter is not None else []
        return sum(self._used(user, name, whole) for user, name in users) if users else whole

    def _used(self, user: Instruction, name: str, whole: int) -> int:
        if user.operation in ("dynamic-slice", "slice", "gather") and user.operands[0] == name:
            return user.arrays[0].size
        if user.operation == "dynamic-update-slice" and user.operands[0] == name:
            return 0
        if user.operation == "fusion":
            within = self.computations[user.called("calls")]
            return sum(
                self._read(within, number, whole)
                for number, operand in enumerate(user.operands)
                if operand == name
            )
        return whole

    def _written(self, fused: Computation, instruction: Instruction) -> int:
        """Return the bytes that a fusion writes: of an array that it updates in place, the update."""
        roots = _roots(fused)
        if len(roots) != len(instruction.arrays):
            return instruction.in_memory
        return sum(
            self._stored(fused, root, array.size)
            for array, root in zip(instruction.arrays, roots, strict=True)
            if not array.on_chip
        )

    def _stored(self, fused: Computation, root: Instruction, whole: int) -> int:
        while root.operation == "bitcast":
            root = fused[root.operands[0]]
        if root.operation == "dynamic-update-slice":
            return fused[root.operands[1]].arrays[0].size
        if root.operation == "fusion":
            within = self.computations[root.called("calls")]
            if len(roots := _roots(within)) == 1:
                return self._stored(within, roots[0], whole)
        return whole


class Moved(NamedTuple):
    """An instruction, the bytes that a run of the program moves for it, and how often it is executed."""

    instruction: Instruction
    size: int
    repeats: int


def by_origin(moved: list[Moved]) -> dict[str, int]:
    """Return bytes by the operation of the source, numbers in its name left out, the most first."""
    table: dict[str, int] = collections.Counter()
    for one in moved:
        table[re.sub(r"\d+", "#", one.instruction.origin) or one.instruction.operation] += one.size
    return dict(sorted(table.items(), key=lambda item: -item[1]))


def _users(fused: Computation, name: str) -> Iterator[tuple[Instruction, str]]:
    """Return what uses a value in a fusion, and under which name: bitcasts are other names of it."""
    for instruction in fused.values():
        if name in instruction.operands:
            if instruction.operation == "bitcast":
                yield from _users(fused, instruction.name)
            else:
                yield instruction, name


def _roots(fused: Computation) -> list[Instruction]:
    """Return what a fusion computes: its root, or the entries of the tuple that its root is."""
    (root,) = (i for i in fused.values() if i.is_root)
    return [fused[name] for name in root.operands] if root.operation == "tuple" else [root]


def _parsed(line: str) -> Instruction | None:
    start = _INSTRUCTION.match(line)
    if start is None:
        return None
    root, name, definition = start.groups()
    shape, tail = _split(definition)
    operation = _OPERATION.match(tail)
    if operation is None:
        return None
    kind, rest = operation.groups()
    inside = _balanced("(" + rest)
    operands = (
        () if kind in ("parameter", "constant") else tuple(re.findall(r"%([\w.\-]+)", rest[: inside - 2]))
    )
    return Instruction(
        name, kind, tuple(_arrays(shape)), operands,
        rest if kind in ("parameter", "constant") else rest[inside - 1 :], bool(root),
    )  # fmt: skip


def _split(definition: str) -> tuple[str, str]:
    """Return the shape that a definition starts with, which may be a tuple, and the rest."""
    end = _balanced(definition) if definition.startswith("(") else definition.find(" ")
    return definition[:end], definition[end:]


def _balanced(text: str) -> int:
    """Return the length of the part of a text that its first bracket encloses, with brackets."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return place + 1
    return len(text)


def _arrays(shape: str) -> Iterator[Array]:
    for dtype, dims, layout in _ARRAY.findall(shape):
        sizes = tuple(map(int, filter(None, dims.split(","))))
        yield Array(dtype, sizes, bool(_ON_CHIP.search(layout or "")))
