"""Holes against masks drawn by hand."""

import numpy as np
import pytest

from l2l_jax.operators import HOLES, border_hole, centre_hole, side_hole


def drawn(*rows):
    return np.array([[pixel == "#" for pixel in row] for row in rows])


def test_centre():
    np.testing.assert_array_equal(centre_hole(4, 2), drawn("....", ".##.", ".##.", "...."))
    assert centre_hole(256, 128).sum() == 128**2  # the published task: half of the side


def test_border():
    np.testing.assert_array_equal(border_hole(4, 1), drawn("####", "#..#", "#..#", "####"))


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        ("left", drawn("#..", "#..", "#..")),
        ("right", drawn("..#", "..#", "..#")),
        ("top", drawn("###", "...", "...")),
        ("bottom", drawn("...", "...", "###")),
    ],
)
def test_sides(side, expected):
    np.testing.assert_array_equal(side_hole(3, 1, side), expected)
    np.testing.assert_array_equal(HOLES[side](3, 1), expected)


@pytest.mark.parametrize(
    ("name", "size", "width"),
    [("centre", 16, 16), ("centre", 16, 0), ("centre", 16, 7), ("border", 16, 8), ("left", 16, 16)],
)
def test_impossible_holes_are_refused(name, size, width):
    with pytest.raises(ValueError):
        HOLES[name](size, width)


def test_an_unknown_side_is_refused():
    with pytest.raises(ValueError, match="left, right, top, bottom"):
        side_hole(8, 2, "middle")
