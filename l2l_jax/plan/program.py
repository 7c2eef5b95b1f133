"""Memory traffic of a compiled program, computed from its text (HLO).

XLA's own sum, "bytes accessed", includes the on-chip memory of a TPU and counts the body of a loop once.
This module counts only arrays in main memory, once per execution.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(")
_INSTRUCTION = re.compile(
    r"^\s+(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = (?P<shape>.*?) (?P<operation>[a-z][\w\-]*)\("
    r"(?P<inside>(?:[^()]|\([^()]*\))*)\)(?P<rest>.*)$"
)
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d\w+)?)\[([\d,]*)\](?:\{([^}]*)\})?")
_ON_CHIP = re.compile(r"S\(([1-46-9]|\d\d+)\)")  # 0 or none is main memory; 5 is host memory
_CALLS = re.compile(
    r"\b(body|to_apply|calls|(?:true|false)_computation|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)

FREE = (
    "parameter",
    "get-tuple-element",
    "tuple",
    "bitcast",
    "constant",
    "iota",
    "after-all",
    "opt-barrier",
    "partition-id",
    "replica-id",
    "optimization-barrier",
    "domain",
    "async-update",
    "while",
    "call",
    "conditional",
    "async-start",
)
"""Operations that move no data themselves."""

ALIASES = ("ConcatBitcast", "AssumeGatherIndicesInBound", "AllocateBuffer")
"""Targets of custom calls that move no data."""

REARRANGING = (
    "parameter",
    "constant",
    "tuple",
    "bitcast",
    "copy",
    "transpose",
    "slice",
    "concatenate",
    "pad",
)
"""Operations that do not change values."""

SLICES = ("dynamic-slice", "slice", "gather")


class Array(NamedTuple):
    """One array of a result: dtype, shape, and whether it is in on-chip memory."""

    dtype: str
    shape: tuple[int, ...]
    on_chip: bool

    @property
    def size(self) -> int:
        """Size in bytes without padding."""
        bits = re.search(r"\d+", self.dtype)
        width = 8 if self.dtype == "pred" else int(bits.group()) if bits else 0  # tokens have none
        return -(-width * math.prod(self.shape) // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One HLO instruction."""

    name: str  # unique within its computation
    operation: str
    arrays: tuple[Array, ...]  # arrays of the result, without the workspace of library calls
    operands: tuple[str, ...]  # names in the same computation; number of a parameter, value of a constant
    rest: str  # text after the operands
    is_root: bool  # whether it is the result of its computation

    def attribute(self, pattern: str) -> str:
        """Return the first group of a pattern in the text after the operands; "" if it does not match."""
        match = re.search(pattern, self.rest)
        return match.group(1) if match else ""

    @property
    def origin(self) -> str:
        """Operation of the source program."""
        return self.attribute(r'op_name="([^"]*)"')

    @property
    def target(self) -> str:
        """Target of a custom call; "" for other operations."""
        return self.attribute(r'custom_call_target="([^"]*)"')

    @property
    def in_memory(self) -> int:
        """Bytes of the result in main memory."""
        return sum(array.size for array in self.arrays if not array.on_chip)

    @property
    def calls(self) -> list[tuple[str, str]]:
        """Pairs of attribute and name of the called computation."""
        matches = _CALLS.findall(self.rest)
        return [(attribute, name) for attribute, names in matches for name in re.findall(r"[\w.\-]+", names)]


Computation = Mapping[str, Instruction]


class Moved(NamedTuple):
    """An instruction, the bytes it moves in one run of the program, and its number of executions."""

    instruction: Instruction
    size: int
    repeats: int


class Program:
    """A compiled program, parsed from the text of `compiled.as_text()`.

    `computations` maps names of computations to their instructions by name; callees precede callers.
    """

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {"": {}}
        self._entry = ""
        current = self.computations[""]
        for line in text.splitlines():
            start = None if line.startswith(" ") else _COMPUTATION.match(line)
            if start:
                current = self.computations.setdefault(start.group(2), {})
                self._entry = start.group(2) if start.group(1) else self._entry
            elif (match := _INSTRUCTION.match(line)) is not None:
                current[match["name"]] = _instruction(match)

    @functools.cached_property
    def repeats(self) -> Mapping[str, float]:
        """Executions of each computation per run, including fusions; nan within a loop of unknown length."""
        counts: dict[str, float] = collections.defaultdict(float, {self._entry: 1})
        for name in reversed(self.computations):
            for instruction in self.computations[name].values():
                for attribute, called in instruction.calls:
                    length = self._loop_length(instruction) if attribute == "body" else 1
                    counts[called] += counts[name] * length
        return counts

    def _loop_length(self, loop: Instruction) -> float:
        """Return the trip count of a loop; nan if it is unknown.

        XLA's CPU and GPU compilers annotate it. Otherwise it is read from a condition "number < constant",
        because JAX's scans and loops over ranges count from 0 in steps of 1.
        """
        if annotated := loop.attribute(r'known_trip_count":\{"n":"(\d+)"'):
            return int(annotated)
        condition = self.computations.get(loop.attribute(r"\bcondition=%?([\w.\-]+)"), {})
        root = next((i for i in condition.values() if i.is_root), None)
        if root is None or root.operation != "compare" or "direction=LT" not in root.rest:
            return math.nan
        limit = condition[root.operands[1]]
        return int(limit.operands[0]) if limit.operation == "constant" else math.nan

    @functools.cached_property
    def moved(self) -> list[Moved]:
        """Bytes that each instruction outside of fusions moves per run, with all branches of conditionals.

        Raises:
          ValueError: A loop has an unknown length.
        """
        scheduled, result = {self._entry}, []
        for name in reversed(self.computations):
            if name not in scheduled:
                continue
            computation, repeats = self.computations[name], self.repeats[name]
            for instruction in computation.values():
                if instruction.operation in ("while", "call", "conditional", "async-start"):
                    scheduled.update(called for _, called in instruction.calls)
                    if instruction.operation == "while" and math.isnan(self._loop_length(instruction)):
                        raise ValueError(f"a loop of unknown length: {instruction.name}")
                elif instruction.operation not in FREE and instruction.target not in ALIASES:
                    size = self._moves(computation, instruction) * int(repeats)
                    result.append(Moved(instruction, size, int(repeats)))
        return result

    @property
    def traffic(self) -> int:
        """Bytes moved through main memory per run."""
        return sum(moved.size for moved in self.moved)

    def handed_over(self, is_library: Callable[[Instruction], bool]) -> int:
        """Return the bytes that library kernels and other kernels must pass to each other.

        Other kernels write each library operand that is neither an argument nor a library result, and read
        each library result that they use. Each value is counted once, regardless of its number of users.
        Kernels that only rearrange values are ignored, because other layouts could make them unnecessary.
        """
        total = 0.0
        for name, computation in self.computations.items():
            crossing = {}
            for user in computation.values():
                if user.operation in FREE or self._rearranges(user):
                    continue
                for operand in user.operands:
                    value, source = _origin(computation, operand)
                    idle = source.operation in FREE or self._rearranges(source)
                    if not idle and is_library(source) != is_library(user):
                        crossing[value.name] = value.in_memory
            total += self.repeats[name] * sum(crossing.values())
        return int(total)

    def _rearranges(self, instruction: Instruction) -> bool:
        if instruction.operation == "fusion":
            return all(inner.operation in REARRANGING for inner in self._fused(instruction).values())
        return instruction.operation in REARRANGING

    def largest(self, count: int) -> list[Moved]:
        """Return the largest temporary results in main memory, one per origin."""
        largest: dict[tuple[str, int], Moved] = {}
        results = self._results()
        for moved in self.moved:
            instruction, size = moved.instruction, moved.instruction.in_memory
            if size and instruction.name not in results and not instruction.operation.endswith("-start"):
                largest.setdefault((instruction.origin or instruction.name, size), moved._replace(size=size))
        return sorted(largest.values(), key=lambda moved: -moved.size)[:count]

    def _results(self) -> set[str]:
        """Return the names of instructions whose results the program returns."""
        entry = self.computations[self._entry]
        waiting = [instruction.name for instruction in entry.values() if instruction.is_root]
        names = set(waiting)
        while waiting:
            instruction = entry[waiting.pop()]
            if instruction.is_root or instruction.operation in ("bitcast", "get-tuple-element", "copy-done"):
                names.update(instruction.operands)
                waiting += [name for name in instruction.operands if name in entry]
        return names

    def _moves(self, computation: Computation, instruction: Instruction) -> int:
        """Return the bytes that one execution reads from and writes to main memory."""
        operation, arrays = instruction.operation, instruction.arrays
        if operation.endswith("-done"):  # counted at the start operation
            return 0
        if operation == "copy-start":  # (to, from, …)
            return sum(array.size for array in arrays[:2] if not array.on_chip)
        if operation == "slice-start":  # ((from), to, …)
            return arrays[1].size * ((not arrays[0].on_chip) + (not arrays[1].on_chip))
        if operation.endswith("-start") and operation != "all-reduce-start":  # (operands, results)
            return instruction.in_memory
        operands = [computation[name] for name in instruction.operands if name in computation]
        if operation in SLICES:
            return instruction.in_memory + (arrays[0].size if operands[0].in_memory else 0)
        if operation == "dynamic-update-slice":
            return 2 * operands[1].arrays[0].size if instruction.in_memory else operands[1].in_memory
        if operation != "fusion":
            return sum(operand.in_memory for operand in operands) + instruction.in_memory
        fused = self._fused(instruction)
        read = (
            self._read(fused, _parameter(fused, number), operand.in_memory)
            for number, operand in enumerate(operands)
        )
        return sum(read) + self._written(fused, instruction)

    def _fused(self, fusion: Instruction) -> Computation:
        return self.computations[fusion.attribute(r"\bcalls=%?([\w.\-]+)")]

    def _read(self, fused: Computation, name: str, whole: int) -> int:
        """Return the number of bytes that a fusion reads of a value with `whole` bytes.

        If it only slices the value, these are the slices; a value updated in place is not read.
        """
        size = 0
        for user in fused.values():
            if name not in user.operands:
                continue
            if user.operation == "bitcast":
                size += self._read(fused, user.name, whole)
            elif user.operation in SLICES and user.operands[0] == name:
                size += user.arrays[0].size
            elif user.operation == "fusion":
                within = self._fused(user)
                places = [number for number, operand in enumerate(user.operands) if operand == name]
                size += sum(self._read(within, _parameter(within, number), whole) for number in places)
            elif user.operation != "dynamic-update-slice" or user.operands[0] != name:
                return whole
        return min(size, whole)

    def _written(self, fused: Computation, instruction: Instruction) -> int:
        """Return the bytes that a fusion writes; for an array updated in place, those of the update."""
        root = _root(fused)
        roots = [fused[name] for name in root.operands] if root.operation == "tuple" else [root]
        if len(roots) != len(instruction.arrays):
            return instruction.in_memory
        return sum(
            self._stored(fused, root, array.size)
            for array, root in zip(instruction.arrays, roots, strict=True)
            if not array.on_chip
        )

    def _stored(self, fused: Computation, value: Instruction, whole: int) -> int:
        if value.operation == "bitcast":
            return self._stored(fused, fused[value.operands[0]], whole)
        if value.operation == "dynamic-update-slice":
            return fused[value.operands[1]].arrays[0].size
        if value.operation == "fusion":
            return self._stored(within := self._fused(value), _root(within), whole)
        return whole


def _origin(computation: Computation, name: str) -> tuple[Instruction, Instruction]:
    """Return the value that a name refers to through views, and the instruction that computes it."""
    value = computation[name]
    while value.operation in ("bitcast", "get-tuple-element"):
        source = computation[value.operands[0]]
        if value.operation == "bitcast":
            value = source
        elif source.operation == "tuple":  # optimization barriers are lowered to tuples
            value = computation[source.operands[int(value.attribute(r"\bindex=(\d+)"))]]
        else:
            return value, source
    return value, value


def _parameter(fused: Computation, number: int) -> str:
    parameter = ("parameter", (str(number),))
    return next(i.name for i in fused.values() if (i.operation, i.operands) == parameter)


def _root(fused: Computation) -> Instruction:
    return next(i for i in fused.values() if i.is_root)


def _instruction(match: re.Match[str]) -> Instruction:
    operation, inside, rest = match["operation"], match["inside"], match["rest"]
    named = (inside,) if operation in ("parameter", "constant") else re.findall(r"%([\w.\-]+)", inside)
    arrays = tuple(
        Array(dtype, tuple(map(int, filter(None, dims.split(",")))), bool(_ON_CHIP.search(layout)))
        for dtype, dims, layout in _ARRAY.findall(match["shape"])
    )
    if (
        operation == "custom-call"
        and re.search(r'custom_call_target="__cu(blas|dnn)', rest)
        and len(arrays) > 1
    ):
        arrays = arrays[:-1]
    return Instruction(match["name"], operation, arrays, tuple(named), rest, bool(match["root"]))
