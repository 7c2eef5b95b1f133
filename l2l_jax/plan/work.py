"""Compiler-independent operation counts and memory traffic of a traced program (jaxpr).

Only matrix products and convolutions are counted, because other operations can be fused with them.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core


class Work(NamedTuple):
    """Total work of products and convolutions on all devices."""

    flops: float  # two operations per multiplication
    product_bytes: float  # bytes of operands and results, each read or written once


def work_of(function: Callable, *arguments: Any) -> Work:
    """Return the work of a function for given arguments, which may be shapes.

    For a conditional, the branch with the most work is counted. For a platform-dependent choice, the default
    branch is counted, because only CPUs have special branches in this package. The body of a loop of unknown
    length is counted once.
    """
    return _work(jax.make_jaxpr(function)(*arguments).jaxpr)


def _work(jaxpr: Any) -> Work:
    flops, size = 0.0, 0.0
    for equation in jaxpr.eqns:
        count, name = _OPERATIONS.get(equation.primitive.name), equation.primitive.name
        if count is None:
            inner = [_work(nested) for nested in _inner(equation)]
            repeats = 1
            if name == "cond":
                platforms = equation.params.get("branches_platforms")
                inner = [inner[platforms.index(None)] if platforms else max(inner)]
            elif name == "scan":
                repeats = equation.params["length"]
            elif name == "shard_map":
                repeats = math.prod(equation.params["mesh"].shape.values())
            flops += repeats * sum(work.flops for work in inner)
            size += repeats * sum(work.product_bytes for work in inner)
        else:
            flops += count(equation)
            avals = [variable.aval for variable in (*equation.invars, *equation.outvars)]
            size += sum(math.prod(aval.shape) * np.dtype(aval.dtype).itemsize for aval in avals)
    return Work(flops, size)


def _inner(equation: Any) -> Iterator[Any]:
    """Yield the jaxprs nested in an equation."""
    for parameter in equation.params.values():
        for value in parameter if isinstance(parameter, tuple | list) else (parameter,):
            if isinstance(value, core.ClosedJaxpr):
                yield value.jaxpr
            elif isinstance(value, core.Jaxpr):
                yield value


def _product(equation: Any) -> int:
    """Return 2 · elements of the result · size of the contracted axes."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: Any) -> float:
    """Return 2 · elements of the result · size of a kernel for one output channel.

    For a transposed convolution, whose input is dilated with zeros, only nonzero elements are counted.
    """
    numbers = equation.params["dimension_numbers"]
    kernel = equation.invars[1].aval.shape
    per_output = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
    spread = math.prod(equation.params["lhs_dilation"])
    return 2 * math.prod(equation.outvars[0].aval.shape) * per_output / spread


_OPERATIONS: dict[str, Callable[[Any], float]] = {
    "dot_general": _product,
    "conv_general_dilated": _convolution,
}
