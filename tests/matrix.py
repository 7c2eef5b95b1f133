"""Which cells of a matrix every run covers, and which are left to `-m soak`.

A matrix, such as families × methods, has many cells that go through the same code. Every run takes the cells
that are most likely to break; `pytest -m soak` runs the others.
"""

import itertools

import pytest


def soak(*values):
    """A parameter of a test that is left to `-m soak`; say in the test what covers the same in every run."""
    return pytest.param(*values, marks=pytest.mark.soak)


def cells(*axes, normal) -> list:
    """All cells of a matrix, as parameters of a test; those that are not in `normal` get the mark `soak`."""
    return [cell if cell in normal else soak(*cell) for cell in itertools.product(*axes)]
