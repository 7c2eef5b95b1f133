"""Test matrices whose less critical cells run only with `-m soak`.

A matrix, such as families × methods, has many cells that run the same code. Every test run covers the cells
that are most likely to break; `pytest -m soak` runs the others.
"""

import itertools

import pytest


def soak(*values):
    """Mark a test parameter for `-m soak` only; the test should name the tests that always cover the code."""
    return pytest.param(*values, marks=pytest.mark.soak)


def cells(*axes, normal) -> list:
    """Return all cells of a matrix as test parameters; cells that are not in `normal` are marked `soak`."""
    return [cell if cell in normal else soak(*cell) for cell in itertools.product(*axes)]
