"""Confidence intervals compared with the normal approximation and known coverage."""

import math

import numpy as np
import pytest

from l2l_jax.evals.intervals import bootstrap, mean_interval, standard_interval


def test_accuracy_has_the_binomial_standard_error():
    right = np.arange(400) < 300
    interval = mean_interval(right)
    reach = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert interval[1:] == pytest.approx((0.75 - reach, 0.75 + reach), abs=0.006)
    assert 0.75 in interval and 0.9 not in interval


def test_intervals_have_95_percent_coverage():
    rng = np.random.default_rng(0)
    hits = sum(0.0 in mean_interval(rng.normal(size=60), seed=i) for i in range(200))
    assert 180 <= hits <= 199  # 190 expected, standard deviation 3


def test_metrics_of_the_same_images_are_resampled_together():
    """The difference of two metrics of one set can be certain even if both have wide intervals."""
    first = np.random.default_rng(0).normal(size=50)
    second = first + 1.0
    paired = bootstrap(lambda i: second[i].mean(-1) - first[i].mean(-1), 50)
    assert paired == pytest.approx((1.0, 1.0, 1.0))
    independent = bootstrap(lambda i, j: second[i].mean(-1) - first[j].mean(-1), 50, 50)
    reach = 1.96 * math.sqrt(2 / 50) * first.std()
    assert independent.high - independent.low == pytest.approx(2 * reach, rel=0.12)


def test_resamples_without_a_value_are_excluded():
    values = np.array([1.0, 1.0, np.nan, 1.0])
    interval = bootstrap(lambda i: values[i].mean(-1), 4)
    assert math.isnan(interval.value) and interval[1:] == (1.0, 1.0)
    assert math.isnan(mean_interval(np.array([2.0])).low)
    with pytest.raises(ValueError, match="at least one image"):
        bootstrap(lambda i: i.mean(-1), 0)


def test_standard_interval_of_a_mean_is_normal():
    values = np.random.default_rng(0).normal(5, 2, size=300)
    interval = standard_interval(lambda i: values[i].mean(), 300, resamples=1000)
    reach = 1.96 * values.std() / math.sqrt(300)
    assert interval[1:] == pytest.approx((values.mean() - reach, values.mean() + reach), abs=0.03)
    assert standard_interval(lambda i: values[i].mean() - 5, 300, least=0).low == 0
