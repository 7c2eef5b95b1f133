"""Non-inferiority tests compared with SciPy and by hand; depth and AUC; rules and error rates of verdicts."""

import dataclasses
import math
import runpy

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from l2l_jax.audit.comparison import (
    MARGINS,
    Comparison,
    SeedSpread,
    accuracy_interval,
    auc,
    compare,
    knowledge,
)
from l2l_jax.audit.score import depth
from l2l_jax.audit.verdict import decide, differ
from tests.matrix import soak

RNG = np.random.default_rng(0)
ERRORS = RNG.gamma(4, 0.01, size=(3, 400))
CLASSES = RNG.integers(0, 3, 400)
RIGHT = RNG.random((3, 400)) < np.array([[0.9], [0.5], [0.6]])


def test_error_test_equals_a_t_test_without_skewness():
    """Symmetric differences: with the margin m, of exp(m) · errors − reference (Fieller)."""
    own, reference = ERRORS[0], ERRORS[0].copy()
    noise = np.concatenate([RNG.normal(0, 0.01, 200)] * 2) * np.repeat([1, -1], 200)
    own = own - own.mean() + 0.04
    reference = math.exp(MARGINS["error"]) * own + 0.001 + noise
    actual = compare("error", (own,), [(reference,)])
    expected = stats.ttest_1samp(math.exp(MARGINS["error"]) * own - reference, 0, alternative="less").pvalue
    assert actual.p_violated == pytest.approx(expected, rel=1e-6)
    assert actual.excess == pytest.approx(math.log(reference.mean() / own.mean()))


def test_tests_are_just_significant_at_the_bounds():
    result = compare("error", (ERRORS[0],), [(ERRORS[1],)])
    assert result.low < result.excess < result.high
    for end, name in ((result.low, "p_violated"), (result.high, "p_holds")):
        shifted = (ERRORS[0] * math.exp(end - MARGINS["error"]),)  # its margin is now at that end
        assert getattr(compare("error", shifted, [(ERRORS[1],)]), name) == pytest.approx(0.05, rel=1e-4)


def test_skewness_widens_the_bound_on_the_side_of_the_tail():
    heavy = RNG.lognormal(0, 1.2, 300)
    light = np.full(300, heavy.mean()) + RNG.normal(0, 0.1, 300)
    result = compare("error", (light,), [(heavy,)])
    x = light - heavy
    reach = stats.t.ppf(0.95, 299) * x.std(ddof=1) / math.sqrt(300) / light.mean()
    assert result.high - result.excess > 1.1 * reach


def test_accuracy_is_balanced_over_classes():
    for right in RIGHT:
        guess = np.where(right, CLASSES, (CLASSES + 1) % 3)
        expected = balanced_accuracy_score(CLASSES, guess)
        assert knowledge("accuracy", (right, CLASSES)) == pytest.approx(expected)
        value, low, high = accuracy_interval(right, CLASSES)
        assert value == pytest.approx(expected) and low < value < high
    actual = compare("accuracy", (RIGHT[1], CLASSES), [(RIGHT[2], CLASSES)])
    means = [(RIGHT[1].astype(int) - RIGHT[2])[c == CLASSES] for c in range(3)]
    error = math.sqrt(sum(m.var(ddof=1) / len(m) for m in means)) / 3
    assert actual.excess == pytest.approx(np.mean([m.mean() for m in means]))
    assert actual.high - actual.excess == pytest.approx(stats.t.ppf(0.95, 397) * error, rel=0.02)


@pytest.mark.parametrize("ratio", np.linspace(0.5, 2, 16))
def test_errors_that_do_not_vary_have_no_interval(ratio):
    """Blank reconstructions of equal images; rounding decides the sign of the test's mean."""
    errors, reference = np.full(30, 0.1), np.full(30, 0.1 * ratio)
    result = compare("error", (errors,), [(reference,)])
    bounds = result.low, result.excess, result.high
    np.testing.assert_allclose(bounds, math.log(ratio), rtol=0, atol=1e-6)


def test_equal_answers_on_few_images_leave_uncertainty():
    few = np.ones(10, bool), np.zeros(10, int)
    assert not compare("accuracy", few, [few]).holds
    many = np.ones(200, bool), np.zeros(200, int)
    assert compare("accuracy", many, [many]).holds


def test_auc_matches_scikit_learn_and_bootstrap_errors():
    members, others = RNG.integers(0, 20, 70) / 20, RNG.integers(5, 25, 50) / 20  # with ties
    labels = np.repeat([1, 0], [70, 50])
    expected = roc_auc_score(labels, -np.concatenate([members, others]))
    assert auc(members, others) == pytest.approx(expected)
    other = RNG.permutation(members), RNG.permutation(others)
    actual = compare("auc", (members, others), [other])
    i, j = RNG.integers(70, size=(2000, 70)), RNG.integers(50, size=(2000, 50))
    drawn = auc(members[i], others[j]) - auc(other[0][i], other[1][j])
    assert (actual.high - actual.low) / 2 == pytest.approx(1.66 * np.std(drawn), rel=0.1)


def test_several_retrained_models_widen_the_margin_by_their_spread():
    seeds = [(ERRORS[1] * factor,) for factor in (0.7, 1.0, 1.3)]
    actual = compare("error", (ERRORS[0],), seeds)
    deviation = np.std(np.log([0.7, 1.0, 1.3]), ddof=1)
    expected = stats.t.ppf(0.95, 2) * deviation * math.sqrt(1 + 1 / 3)
    assert actual.margin == pytest.approx(expected)
    assert actual.excess == pytest.approx(math.log(ERRORS[1].mean() / ERRORS[0].mean()))
    other = compare("error", (ERRORS[0],), seeds[:1], SeedSpread(deviation, 3))
    assert other.margin == pytest.approx(expected * math.sqrt(2 / (1 + 1 / 3)))
    assert actual.seeds == pytest.approx(other.seeds) and other.seeds == SeedSpread(deviation, 3)
    assert compare("error", (ERRORS[0],), seeds[:1], SeedSpread(1e-3, 3)).margin == MARGINS["error"]


def test_equal_models_pass_and_a_shifted_model_fails():
    same = compare("error", (ERRORS[0],), [(ERRORS[0],)])
    assert same.holds and same.excess == same.low == same.high == 0
    shifted = compare("error", (ERRORS[0],), [(1.2 * ERRORS[0],)])
    assert shifted.p_violated < 1e-9 and shifted.excess == pytest.approx(math.log(1.2))
    with pytest.raises(ValueError, match="same images"):
        compare("error", (ERRORS[0],), [(ERRORS[0][:5],)])


def test_number_of_images_for_a_decision():
    """With the estimated number of images, the test is significant in four of five samples."""
    rng, decided = np.random.default_rng(1), 0

    def draw(images):
        own = rng.gamma(2, size=images)
        return (own,), [(0.9 * own * rng.lognormal(0, 0.7, images) * math.exp(-0.245),)]

    needed = [compare("error", *draw(1000)).images_needed() for _ in range(20)]
    images = int(np.median(needed))
    for _ in range(100):
        decided += compare("error", *draw(images)).holds
    assert images > 100 and 60 <= decided <= 95


def test_depth_by_the_logarithm_of_the_error():
    means = (0.0128, 0.0995, 0.0443)  # original, unlearned and retrained model
    scaled = [(row * mean / row.mean(),) for row, mean in zip(ERRORS, means, strict=True)]
    actual = depth("error", *scaled)
    expected = math.log(means[1] / means[0]) / math.log(means[2] / means[0])
    assert actual["value"] == pytest.approx(expected) and actual["low"] < actual["value"] < actual["high"]
    for unlearned, certain in ((scaled[0], 0), (scaled[2], 1)):
        ends = {"value": certain, "low": certain, "high": certain, "resolved": True}
        assert depth("error", scaled[0], unlearned, scaled[2]) == ends


def test_no_depth_if_original_and_retrained_model_hardly_differ():
    near = depth("error", (ERRORS[0],), (ERRORS[1],), (1.05 * ERRORS[0],))
    assert not near["resolved"]
    better = depth("accuracy", (RIGHT[1],), (RIGHT[1],), (RIGHT[0],))  # the retrained model is better
    assert not better["resolved"] and better["value"] is None


def comparison(p_holds, p_violated, excess=0.0):
    return Comparison("error", excess, excess - 0.1, excess + 0.1, 0.1, p_holds, p_violated, 1000)


HOLDS, OPEN, VIOLATED = comparison(0.01, 0.99, -0.2), comparison(0.3, 0.7, 0.08), comparison(1, 0.001, 0.5)
WEAK = comparison(0.98, 0.02, 0.2)  # significant as a single test, not among three


def test_number_of_retrained_models_to_narrow_the_margin():
    """The 95% bound of another seed falls below the excess with four models."""
    open_ = Comparison("error", 0.3, 0.299, 0.301, 0.337, 0.2, 0.8, 1000, SeedSpread(0.1, 3))
    margins = [stats.t.ppf(0.95, n - 1) * 0.1 * math.sqrt(1 + 1 / n) for n in (3, 4)]
    assert margins[1] < 0.3 < margins[0] and open_.retrained_needed() == 4
    assert decide([open_], {}).describe()["retrained_needed"] == 4
    assert dataclasses.replace(open_, excess=0.05).retrained_needed() is None
    assert dataclasses.replace(open_, seeds=None).retrained_needed() is None


@pytest.mark.parametrize(
    ("unattacked", "attacks", "finding", "attack"),
    [
        ([HOLDS, HOLDS], {"a": [HOLDS], "b": [HOLDS, HOLDS]}, "forgotten", None),
        ([HOLDS], {"a": [HOLDS], "b": [HOLDS, OPEN]}, "undecided", "b"),
        ([HOLDS], {"a": [HOLDS, VIOLATED], "b": [OPEN]}, "hidden", "a"),
        ([HOLDS], {"a": [WEAK], "b": [HOLDS, HOLDS]}, "undecided", "a"),
        ([HOLDS], {"a": [WEAK]}, "hidden", "a"),
        ([HOLDS, VIOLATED], {"a": [HOLDS]}, "not forgotten", None),
        ([OPEN], {"a": [VIOLATED]}, "undecided", None),
        ([HOLDS], {}, "forgotten", None),
        ([], {}, "undecided", None),
    ],
)
def test_verdict_rules(unattacked, attacks, finding, attack):
    verdict = decide(unattacked, attacks)
    assert verdict.finding == finding
    assert verdict.attack == attack
    described = verdict.describe()
    assert (described["images_needed"] is not None) == (finding == "undecided" and bool(unattacked))
    assert described["violated_attacks"] == [
        n for n, cs in attacks.items() if VIOLATED in cs or cs == [WEAK] and len(attacks) == 1
    ]


def test_role_of_canaries_in_the_verdict():
    attacks = {"a": [HOLDS], "b": [HOLDS]}
    assert decide([HOLDS], attacks, {None: OPEN, "a": OPEN, "b": OPEN}).finding == "forgotten"
    hidden = decide([HOLDS], attacks, {None: OPEN, "a": OPEN, "b": VIOLATED})
    assert (hidden.finding, hidden.attack, hidden.violated) == ("hidden", "b", ("b",))
    verdict = decide([HOLDS], attacks, {None: VIOLATED})
    assert (verdict.finding, verdict.attack, verdict.comparison) == ("not forgotten", None, VIOLATED)
    assert differ([HOLDS, VIOLATED]) and not differ([HOLDS, OPEN])


@pytest.mark.slow
@pytest.mark.parametrize("tails", [(0.5, 1.0), soak((0.7, 0.7))])
def test_verdicts_have_at_most_five_percent_errors(tails):
    """300 audits with every model exactly at the margin; every run has different tails, the harder case."""
    simulation = runpy.run_path("research/verdict_simulation.py")
    limit = stats.binom.ppf(0.999, 300, 0.05) / 3  # per cent
    rates = simulation["error_rates"](200, tails, 300)
    assert max(rates.values()) <= limit, rates
    assert rates["forgotten"] > 0.3 and rates["hidden"] > 0.3  # some audits reach a decision
