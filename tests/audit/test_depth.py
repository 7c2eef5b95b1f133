"""Depth and verdict by hand; AUC and Kolmogorov-Smirnov's distance against peer libraries."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from l2l_jax.audit.attacks.membership import relative_error, scores
from l2l_jax.audit.depth import Depth, auc, depth
from l2l_jax.audit.verdict import decide
from l2l_jax.evaluation.intervals import Interval


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


def known(value, reach=0.05, resolved=True):
    return Depth(value, value - reach, value + reach, Interval(1, 0.5 if resolved else -0.5, 2))


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
