"""Operations of a traced program (jaxpr), and the bytes that it moves whatever compiles it.

Only products and convolutions count: what is between them can be fused with them.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core


class Work(NamedTuple):
    """The work of all devices together, of products and convolutions."""

    flops: float  # two operations for each multiplication
    product_bytes: float  # of factors and results, each read or written once


def work_of(function: Callable, *arguments: Any) -> Work:
    """Return the work of a function on arguments, which may be shapes.

    Of the branches of a condition the one with the most work counts. Where a program chooses by platform, it
    is the branch of all that it does not name: programs here have ways of their own for CPUs alone. The body
    of a loop of unknown length counts once.
    """
    return _work(jax.make_jaxpr(function)(*arguments).jaxpr)


def _work(jaxpr: Any) -> Work:
    flops, size = 0.0, 0.0
    for equation in jaxpr.eqns:
        count, name = _OPERATIONS.get(equation.primitive.name), equation.primitive.name
        if count is None:
            inner = [_work(one) for one in _inner(equation)]
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
    """Return the programs inside an operation."""
    for parameter in equation.params.values():
        for value in parameter if isinstance(parameter, tuple | list) else (parameter,):
            if isinstance(value, core.ClosedJaxpr):
                yield value.jaxpr
            elif isinstance(value, core.Jaxpr):
                yield value


def _product(equation: Any) -> int:
    """2 · elements of the result · numbers that each sums over."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: Any) -> float:
    """2 · elements of the result · size of a kernel for one output channel.

    Of a transposed convolution, whose input is spread out with zeros, only what is not zero counts.
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
