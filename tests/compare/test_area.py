"""Pareto fronts and areas, computed by hand."""

import math

import numpy as np
import pytest

from l2l_jax.compare.area import Point, area_interval, dominated, relative, staircase

PLACES = ((0.1, 1.0), (0.2, 0.5), (0.3, 2.0), (0.1, 1.0), (0.6, 9.0), (-0.1, 0.2))
POINTS = [Point(*place) for place in PLACES]


def test_front_excludes_dominated_settings():
    """0.2 has a higher cost and a smaller gain than 0.1; equal settings do not dominate each other."""
    assert dominated(POINTS) == [False, True, False, False, False, False]
    assert staircase(POINTS, 0.5) == [(0.0, 5), (0.1, 0), (0.3, 2)]
    assert area(POINTS, 0.5) == pytest.approx((0.1 * 0.2 + 0.2 * 1.0 + 0.2 * 2.0) / 0.5)
    assert area([Point(0.25, 3.0)], 0.5) == pytest.approx(1.5)  # no setting in the first half
    assert area([Point(0.5, 3.0)], 0.5) == 0


def area(points, limit, quoted=None):
    """Return the area under a front of settings with one seed and constant errors on forget images."""
    original = np.full(4, 0.02)
    settings = [[original * math.exp(point.gain)] for point in quoted or points]
    return area_interval(settings, original, points, limit).value


def test_settings_selected_by_validation_are_reported_on_test_images():
    validation, test = [Point(0.0, 1.0), Point(0.25, 2.0)], [Point(0.1, 4.0), Point(0.2, 8.0)]
    assert area(validation, 0.5, test) == pytest.approx((0.25 * 4 + 0.25 * 8) / 0.5)
    assert relative([np.full(6, x) for x in (0.011, 0.02, 0.012)], np.full(6, 0.01)) == pytest.approx(1.2)


def test_intervals_contain_the_value_and_use_paired_errors():
    rng = np.random.default_rng(0)
    before = rng.random(50) + 0.1
    tripled = area_interval([[3 * before]], before, [Point(0.0, 1.0)], 0.5)
    assert tripled == pytest.approx([math.log(3)] * 3)
    noisy = 5 * before * rng.uniform(0.5, 1.5, 50)
    interval = area_interval([[noisy]], before, [Point(0.1, 1.0)], 0.5)
    expected = 0.8 * math.log(noisy.mean() / before.mean())
    assert interval.value == pytest.approx(expected)
    assert interval.low < expected < interval.high < interval.low + 0.5
