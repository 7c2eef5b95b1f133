"""FID, KID and Inception Score against clean-fid, pytorch-fid and the release (`fid_stats`), and by hand."""

import tracemalloc

import numpy as np
import pytest

from l2l_jax.evals.statistics import (
    GaussianStatistics,
    ScoreStatistics,
    cosine_similarities,
    frechet_distance,
    gaussian_statistics,
    inception_score,
    kernel_distance,
    squared_discrepancies,
)
from tests.reference_arrays import Case

CASE = Case("fid_stats")


def in_blocks(features, sizes):
    """Statistics of features that come in blocks of these sizes, and those of the rest."""
    statistics, start = GaussianStatistics(features.shape[1]), 0
    for size in (*sizes, len(features)):
        statistics.add(features[start : start + size])
        start += size
    return statistics


def distance(features, other):
    return frechet_distance(gaussian_statistics(features), gaussian_statistics(other))


def test_mean_and_covariance():
    statistics = gaussian_statistics(CASE["feats1"])
    np.testing.assert_allclose(statistics.mean, CASE["mu1"], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(statistics.covariance, CASE["sigma1"], rtol=1e-12, atol=1e-15)


def test_frechet_distance():
    np.testing.assert_allclose(distance(CASE["feats1"], CASE["feats2"]), CASE["fid64"], rtol=1e-9)
    np.testing.assert_allclose(distance(CASE["feats1"], CASE["feats2"]), CASE["fid_pytorch_fid"], rtol=1e-6)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (10, 0, 30), (63,), (64,)])
def test_block_sizes_and_the_order_of_merging_do_not_matter(sizes):
    first = in_blocks(CASE["feats1"], sizes)
    second = gaussian_statistics(CASE["feats2"][40:])
    second.merge(GaussianStatistics(16))
    second.merge(gaussian_statistics(CASE["feats2"][:40]))
    np.testing.assert_allclose(first.covariance, CASE["sigma1"], rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(frechet_distance(first, second), CASE["fid64"], rtol=1e-9)


def test_features_far_from_zero_lose_no_digits():
    far = CASE["feats1"].astype(np.float64) + 1e6
    np.testing.assert_allclose(in_blocks(far, (7,) * 8).covariance, CASE["sigma1"], rtol=1e-8, atol=1e-9)


def test_frechet_distance_of_a_set_to_itself_is_zero():
    assert abs(distance(CASE["feats1"], CASE["feats1"])) < 1e-9


def test_frechet_distance_of_singular_covariances():
    # The original takes the square root of a singular product by Schur decomposition, good to about 1e-6.
    found = distance(CASE["feats1"][:10], CASE["feats2"][:12])
    np.testing.assert_allclose(found, CASE["fid_rank_deficient"], rtol=1e-5)


def test_frechet_distance_of_constant_features():
    # No variance at all in the first set: ‖μ₁ − μ₂‖² + tr Σ₂.
    expected = np.square(3 - CASE["mu2"]).sum() + np.trace(CASE["sigma2"])
    np.testing.assert_allclose(distance(np.full((4, 16), 3.0), CASE["feats2"]), expected, rtol=1e-9)


def test_memory_of_the_frechet_distance():
    """Below 150 MB beside two sets of 5,000 images with 2048 features; a quarter of it for half of both."""
    first = np.random.default_rng(0).standard_normal((2500, 1024), dtype=np.float32)
    second = 2 * first
    tracemalloc.start()
    distance(first, second)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150e6 / 4


def test_kernel_distance_of_whole_sets():
    mean, spread = kernel_distance(CASE["feats1"], CASE["feats2"])
    np.testing.assert_allclose(mean, CASE["kid64"], rtol=1e-9)
    np.testing.assert_allclose(mean, CASE["kid"], rtol=1e-6)
    assert spread < 1e-9  # every subset is the whole set


def test_kernel_distance_of_the_references_subsets(monkeypatch):
    monkeypatch.setattr("l2l_jax.evals.statistics.BLOCK", 7)
    other, own = CASE["kid_sub_idx"][:, 0], CASE["kid_sub_idx"][:, 1]
    values = squared_discrepancies(CASE["feats1"], CASE["feats2"], own, other)
    np.testing.assert_allclose(values.mean(), CASE["kid_sub"], rtol=1e-6)


def test_kernel_distance_draws_without_replacement_and_by_seed():
    sets = CASE["feats1"], CASE["feats2"][:30]
    few = dict(subsets=8, subset_size=12)
    assert kernel_distance(*sets, **few) == kernel_distance(*sets, **few)
    assert kernel_distance(*sets, **few) != kernel_distance(*sets, **few, seed=1)
    assert kernel_distance(*sets, **few)[1] > 0.1
    # Subsets as large as the smaller set: it is always taken whole.
    again = kernel_distance(CASE["feats2"][:30], CASE["feats2"][:30], subsets=3)
    assert again[1] < 1e-9


@pytest.mark.parametrize("splits", [1, 7, 10])
def test_inception_score(splits):
    np.testing.assert_allclose(
        inception_score(CASE["is_probs"], splits), CASE[f"is64_splits{splits}"], rtol=1e-9
    )
    np.testing.assert_allclose(
        inception_score(CASE["is_probs"], splits), CASE[f"is_splits{splits}"], rtol=1e-5
    )


def test_inception_score_in_blocks_and_in_any_order():
    first, second = (ScoreStatistics(200, 10, splits=7) for _ in range(2))
    places = np.random.default_rng(0).permutation(200)
    for part in np.split(places, [3, 90]):
        first.add(part, CASE["is_probs"][part])
    second.merge(first)
    np.testing.assert_allclose(second.score(), CASE["is64_splits7"], rtol=1e-9)


def test_inception_score_of_certain_and_even_classes_is_their_number():
    score, spread = inception_score(np.tile(np.eye(4), (10, 1)), splits=10)
    np.testing.assert_allclose([score, spread], [4, 0], atol=1e-9)


def test_cosines():
    found = cosine_similarities(np.array([[3, 4], [1, 0]]), np.array([[6, 8], [1, 1]]))
    np.testing.assert_allclose(found, [1, 2**-0.5], rtol=1e-12)


@pytest.mark.parametrize(
    "call",
    [
        lambda: distance(np.zeros((1, 4)), np.zeros((5, 4))),
        lambda: distance(np.zeros((5, 3)), np.zeros((5, 4))),
        lambda: gaussian_statistics(np.zeros((5, 3))).add(np.zeros((5, 4))),
        lambda: gaussian_statistics(np.zeros((5, 3))).merge(GaussianStatistics(4)),
        lambda: kernel_distance(np.zeros((1, 4)), np.zeros((5, 4))),
        lambda: kernel_distance(np.zeros((5, 3)), np.zeros((5, 4))),
        lambda: inception_score(np.ones((5, 2)) / 2, splits=10),
        lambda: ScoreStatistics(20, 2, splits=10).score(),
    ],
)
def test_too_little_is_refused(call):
    with pytest.raises(ValueError):
        call()
