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
    """The work of all devices together.

    Attributes:
      flops: Floating-point operations of products and convolutions, two for each multiplication.
      product_bytes: Bytes of their factors and results, each read or written once.
    """

    flops: float
    product_bytes: float


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
        count = _OPERATIONS.get(equation.primitive.name)
        if count is None:
            inner = [_work(one) for one in _inner(equation)]
            if equation.primitive.name == "cond":
                platforms = equation.params.get("branches_platforms")
                inner = [inner[platforms.index(None)] if platforms else max(inner)]
            repeats = _repeats(equation)
            flops += repeats * sum(work.flops for work in inner)
            size += repeats * sum(work.product_bytes for work in inner)
        else:
            flops += count(equation)
            size += sum(_size(v.aval) for v in (*equation.invars, *equation.outvars))
    return Work(flops, size)


def _inner(equation: Any) -> Iterator[Any]:
    """Return the programs inside an operation."""
    for parameter in equation.params.values():
        for value in parameter if isinstance(parameter, tuple | list) else (parameter,):
            if isinstance(value, core.ClosedJaxpr):
                yield value.jaxpr
            elif isinstance(value, core.Jaxpr):
                yield value


def _repeats(equation: Any) -> int:
    """Return how often an operation runs its body."""
    if equation.primitive.name == "scan":
        return equation.params["length"]
    if equation.primitive.name == "shard_map":
        return math.prod(equation.params["mesh"].shape.values())
    return 1


def _size(aval: Any) -> int:
    return math.prod(aval.shape) * np.dtype(aval.dtype).itemsize


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
