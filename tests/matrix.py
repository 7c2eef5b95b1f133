"""Which cells of a matrix every run covers, and which are left to `-m soak`.

A matrix, such as families × methods, has many cells that go through the same code. Every run takes the cells
that cover each value of each axis and those that are most likely to break; `pytest -m soak` runs the others.
"""

import itertools
from collections.abc import Hashable, Iterable

import pytest


def soak(*values):
    """A parameter of a test that is left to `-m soak`; say in the test what covers the same in every run."""
    return pytest.param(*values, marks=pytest.mark.soak)


def cells(*axes: Iterable[Hashable], normal: Iterable[tuple]) -> list:
    """All cells of a matrix, as parameters of a test; those that are not in `normal` get the mark `soak`.

    Args:
      axes: the values of each axis.
      normal: the cells of every run, one value of each axis.

    Raises:
      ValueError: a value of an axis is in no cell of `normal`, or one of these cells is not in the matrix.
    """
    axes, normal = [list(axis) for axis in axes], set(normal)
    every = list(itertools.product(*axes))
    if unknown := normal.difference(every):
        raise ValueError(f"not in the matrix: {sorted(unknown)}")
    for index, axis in enumerate(axes):
        if left_out := set(axis).difference(cell[index] for cell in normal):
            raise ValueError(f"in no cell of every run: {sorted(left_out)}")
    return [pytest.param(*cell) if cell in normal else soak(*cell) for cell in every]
