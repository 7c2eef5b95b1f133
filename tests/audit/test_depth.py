"""Depth and verdict by hand; AUC and Kolmogorov-Smirnov's distance against peer libraries."""

import math

import numpy as np
import pytest
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score

from l2l_jax.audit.attacks.membership import relative_error, scores
from l2l_jax.audit.depth import Depth, SeedSpread, auc, depth
from l2l_jax.audit.verdict import decide
from l2l_jax.evals.intervals import Interval


def right(share, count=1000):
    """Answers of which a share is right, in an order of their own."""
    answers = np.arange(count) < round(share * count)
    return (np.random.default_rng(int(1e6 * share)).permutation(answers),)


def errors(mean, count=1000):
    values = np.random.default_rng(int(1e6 * mean)).gamma(4, size=count)
    return (values * mean / values.mean(),)


@pytest.mark.parametrize(
    ("original", "unlearned", "retrained", "expected"),
    [(0.924, 0.379, 0.571, 1.54), (0.924, 0.804, 0.612, 0.38), (0.924, 0.920, 0.857, 0.06)],
)
def test_depth_by_accuracy(original, unlearned, retrained, expected):
    found = depth("accuracy", right(original), right(unlearned), right(retrained))
    assert found.value == pytest.approx(expected, abs=0.006)
    assert found.low < found.value < found.high and found.resolved


@pytest.mark.parametrize(
    ("original", "unlearned", "retrained", "expected"),
    [(0.0128, 0.0995, 0.0443, 1.65), (0.0128, 0.0273, 0.0413, 0.65), (0.0128, 0.0172, 0.0280, 0.38)],
)
def test_depth_by_the_logarithm_of_the_error(original, unlearned, retrained, expected):
    found = depth("error", errors(original), errors(unlearned), errors(retrained))
    assert found.value == pytest.approx(expected, abs=0.006)
    assert found.gap.value == pytest.approx(math.log(retrained / original))


def test_a_model_is_as_deep_as_itself():
    before, never = errors(0.01), errors(0.04)
    assert depth("error", before, before, never)[:3] == (0, 0, 0)
    assert depth("error", before, never, never)[:3] == (1, 1, 1)


def test_models_that_the_images_cannot_tell_apart_have_no_depth():
    found = depth("accuracy", right(0.90, 50), right(0.5, 50), right(0.88, 50))
    assert not found.resolved and not found.describe()["resolved"]
    better = depth("accuracy", right(0.5), right(0.4), right(0.9))  # the yardstick knows more
    assert not better.resolved and math.isnan(better.value) and better.describe()["value"] is None


def test_other_images_are_refused():
    with pytest.raises(ValueError, match="same images"):
        depth("error", errors(0.1, 5), errors(0.1, 5), errors(0.1, 6))


def test_auc_is_scikit_learns():
    rng = np.random.default_rng(0)
    members, others = rng.integers(0, 20, 70) / 20, rng.integers(5, 25, 50) / 20  # with ties
    labels = np.repeat([1, 0], [70, 50])
    expected = roc_auc_score(labels, -np.concatenate([members, others]))
    assert auc(members, others) == pytest.approx(expected)
    rows = auc(np.stack([members, members + 1]), np.stack([others, others]))
    assert rows == pytest.approx([expected, auc(members + 1, others)])


def test_true_positives_at_one_false_positive_in_a_hundred():
    others = np.arange(100) / 100  # one of them, 0, may be taken for a member
    members = np.array([-0.5, 0.0, 0.005, 0.02, 0.5])
    assert scores(members, others).true_positives == 3 / 5
    assert scores(others, others).auc == 0.5


def test_relative_errors_are_bounded_and_take_out_how_hard_an_image_is():
    errors_, reference = np.array([0.0, 1.0, 3.0, 0.0]), np.array([2.0, 1.0, 1.0, 0.0])
    np.testing.assert_allclose(relative_error(errors_, reference), [0, 0.5, 0.75, 0])


def same(mean):
    """Errors of images that say the same, so that nothing but the seed is left to chance."""
    return (np.full(20, mean),)


def test_the_interval_holds_the_seed_of_the_retrained_model_where_its_spread_is_known():
    before, after, never = same(0.01), same(0.02), same(0.04)
    found = depth("error", before, after, never, SeedSpread(0.1, 4))
    reach = math.sqrt(2) * 0.1 * student.ppf(0.975, 3)
    assert found.value == pytest.approx(0.5) and found.over_images == pytest.approx((0.5, 0.5))
    assert found.low == pytest.approx(math.log(2) / (math.log(4) + reach), rel=0.1)
    assert found.high == pytest.approx(math.log(2) / (math.log(4) - reach), rel=0.1)
    assert found.resolved and depth("error", before, after, never)[1:3] == pytest.approx((0.5, 0.5))


def test_another_retrained_seed_has_depth_1_within_the_interval_as_often_as_it_says():
    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        knows = -math.log(0.04) + 0.1 * rng.standard_normal(6)  # of six models that differ by their seed
        spread = SeedSpread(knows[:5].std(ddof=1), 5)
        found = depth("error", same(0.005), same(math.exp(-knows[5])), same(math.exp(-knows[0])), spread)
        held += found.low <= 1 <= found.high
    assert 0.9 <= held / 200 <= 0.99


def known(value, reach=0.05, resolved=True):
    ends = value - reach, value + reach
    return Depth(value, *ends, Interval(1, 0.5 if resolved else -0.5, 2), ends)


def test_an_interval_that_holds_both_models_resolves_nothing():
    assert not known(0.4, reach=0.7).resolved
    assert known(0.4, reach=0.5).resolved and known(0.6, reach=0.5).resolved  # one of them is ruled out


def test_the_rule_of_the_verdict():
    deep, shallow, unknown = known(1.2), known(0.4), known(0.1, resolved=False)
    found = decide([deep, known(0.9)], {"a": [deep], "b": [known(0.86), known(1.4)], "c": [unknown]})
    assert found == ("forgotten for good", "b", known(0.86), True, ("c",))
    found = decide([deep], {"a": [deep], "b": [known(0.85, reach=0.1)]})
    assert found[0] == "forgotten for good" and not found.sure
    found = decide([deep], {"a": [known(0.9)], "b": [known(0.6), shallow]})
    assert found == ("hidden, not forgotten", "b", shallow, True, ())
    found = decide([deep], {"b": [known(0.78)]})
    assert found[0] == "hidden, not forgotten" and not found.sure
    found = decide([shallow, deep], {"a": [deep]})
    assert found == ("not forgotten", None, shallow, True, ())
    assert decide([known(0.7)], {"a": [deep]})[:2] == ("hidden, not forgotten", None)
    assert decide([unknown], {"a": [shallow]})[0] == "undecided"
    assert decide([deep], {"a": [unknown]})[0] == "undecided"
