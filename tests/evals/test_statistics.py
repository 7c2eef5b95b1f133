"""FID, KID and Inception Score compared with clean-fid, pytorch-fid, the release (`fid_stats`), by hand."""

import tracemalloc

import numpy as np
import pytest

from l2l_jax.evals import statistics
from l2l_jax.evals.statistics import (
    frechet_distance,
    inception_score,
    kernel_distance,
    mean_and_covariance,
    squared_discrepancies,
)
from tests.reference_arrays import Case

CASE = Case("fid_stats")
FIRST, SECOND = CASE["feats1"], CASE["feats2"]


@pytest.mark.parametrize("block", [1, 10, 512])
def test_mean_and_covariance(monkeypatch, block):
    monkeypatch.setattr(statistics, "BLOCK", block)
    mean, covariance = mean_and_covariance(FIRST)
    np.testing.assert_allclose(mean, CASE["mu1"], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(covariance, CASE["sigma1"], rtol=1e-11, atol=1e-14)
    far = mean_and_covariance(FIRST.astype(np.float64) + 1e6)[1]  # no precision is lost to the mean
    np.testing.assert_allclose(far, CASE["sigma1"], rtol=1e-8, atol=1e-9)


def test_frechet_distance():
    np.testing.assert_allclose(frechet_distance(FIRST, SECOND), CASE["fid64"], rtol=1e-9)
    np.testing.assert_allclose(frechet_distance(FIRST, SECOND), CASE["fid_pytorch_fid"], rtol=1e-6)
    assert abs(frechet_distance(FIRST, FIRST)) < 1e-9
    # The original computes the square root of a singular product by Schur decomposition, accurate to 1e-6.
    few = frechet_distance(FIRST[:10], SECOND[:12])
    np.testing.assert_allclose(few, CASE["fid_rank_deficient"], rtol=1e-5)
    # Without variance in the first set: ‖μ₁ − μ₂‖² + tr Σ₂.
    expected = np.square(3 - CASE["mu2"]).sum() + np.trace(CASE["sigma2"])
    np.testing.assert_allclose(frechet_distance(np.full((4, 16), 3.0), SECOND), expected, rtol=1e-9)


def test_memory_of_the_frechet_distance():
    """Below 150 MB in addition to two sets of 5,000 images with 2048 features; a quarter for half of both."""
    first = np.random.default_rng(0).standard_normal((2500, 1024), dtype=np.float32)
    second = 2 * first
    tracemalloc.start()
    frechet_distance(first, second)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150e6 / 4


def test_kernel_distance_of_complete_sets_and_reference_subsets(monkeypatch):
    mean, spread = kernel_distance(FIRST, SECOND)
    np.testing.assert_allclose(mean, CASE["kid64"], rtol=1e-9)
    np.testing.assert_allclose(mean, CASE["kid"], rtol=1e-6)
    assert spread < 1e-9  # every subset is the complete set
    monkeypatch.setattr(statistics, "BLOCK", 7)
    other, own = CASE["kid_sub_idx"][:, 0], CASE["kid_sub_idx"][:, 1]
    values = squared_discrepancies(FIRST, SECOND, own, other)
    np.testing.assert_allclose(values.mean(), CASE["kid_sub"], rtol=1e-6)


def test_kernel_distance_draws_without_replacement_and_by_seed():
    sets, few = (FIRST, SECOND[:30]), dict(subsets=8, subset_size=12)
    assert kernel_distance(*sets, **few) == kernel_distance(*sets, **few)
    assert kernel_distance(*sets, **few) != kernel_distance(*sets, **few, seed=1)
    assert kernel_distance(*sets, **few)[1] > 0.1
    # Subsets as large as the smaller set, which is always used completely
    assert kernel_distance(SECOND[:30], SECOND[:30], subsets=3)[1] < 1e-9


@pytest.mark.parametrize("splits", [1, 7, 10])
def test_inception_score(splits):
    result = inception_score(CASE["is_probs"], splits)
    np.testing.assert_allclose(result, CASE[f"is64_splits{splits}"], rtol=1e-9)
    np.testing.assert_allclose(result, CASE[f"is_splits{splits}"], rtol=1e-5)


FEW = [(f, [shape, (5, 4)]) for f in (frechet_distance, kernel_distance) for shape in ((1, 4), (5, 3))]


@pytest.mark.parametrize(("function", "shapes"), [*FEW, (inception_score, [(5, 2)])])
def test_too_few_images_or_different_features_are_rejected(function, shapes):
    with pytest.raises(ValueError):
        function(*map(np.zeros, shapes))
