"""Every run covers every value of every axis."""

import pytest

from tests.matrix import cells


def test_cells_outside_every_run_are_soak():
    found = cells("ab", [1, 2], normal=[("a", 1), ("b", 2)])
    marks = {parameter.values: [mark.name for mark in parameter.marks] for parameter in found}
    assert marks == {("a", 1): [], ("a", 2): ["soak"], ("b", 1): ["soak"], ("b", 2): []}


def test_a_value_without_a_cell_is_refused():
    with pytest.raises(ValueError, match="in no cell of every run: .'b'"):
        cells("ab", [1, 2], normal=[("a", 1), ("a", 2)])
    with pytest.raises(ValueError, match="not in the matrix: .*'c', 1"):
        cells("ab", [1, 2], normal=[("a", 1), ("b", 2), ("c", 1)])
