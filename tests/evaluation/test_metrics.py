"""Figures against clean-fid, pytorch-fid and the release (`fid_stats`), and by hand."""

import numpy as np
import pytest

from l2l_jax.evaluation.metrics import frechet_distance, hole_mse, inception_score, psnr
from tests.reference_arrays import Case

CASE = Case("fid_stats")


def test_frechet_distance():
    distance = frechet_distance(CASE["feats1"], CASE["feats2"])
    np.testing.assert_allclose(distance, CASE["fid64"], rtol=1e-9)
    np.testing.assert_allclose(distance, CASE["fid_pytorch_fid"], rtol=1e-6)


def test_frechet_distance_of_a_set_to_itself_is_zero():
    assert abs(frechet_distance(CASE["feats1"], CASE["feats1"])) < 1e-9


def test_frechet_distance_of_singular_covariances():
    # The original takes the square root of a singular product by Schur decomposition; ours is
    # exact there, theirs good to about 1e-6.
    distance = frechet_distance(CASE["feats1"][:10], CASE["feats2"][:12])
    np.testing.assert_allclose(distance, CASE["fid_rank_deficient"], rtol=1e-5)


@pytest.mark.parametrize("splits", [1, 7, 10])
def test_inception_score(splits):
    np.testing.assert_allclose(
        inception_score(CASE["is_probs"], splits), CASE[f"is64_splits{splits}"], rtol=1e-9
    )


def test_inception_score_of_certain_and_even_classes_is_their_number():
    score, spread = inception_score(np.tile(np.eye(4), (10, 1)), splits=10)
    np.testing.assert_allclose([score, spread], [4, 0], atol=1e-9)


def test_mse_counts_the_hole_only():
    originals = np.zeros((2, 4, 4, 3), np.float32)
    restored = np.full_like(originals, 9)
    hole = np.zeros((4, 4), bool)
    hole[1:3, 1:3] = True
    restored[0, hole], restored[1, hole] = 0.5, 0.1
    mse = hole_mse(originals, restored, hole)
    np.testing.assert_allclose(mse, [0.25, 0.01], rtol=1e-6)
    # 10 log10(1 / 0.25) and 20 dB; a range of 2 adds 6.02 dB.
    np.testing.assert_allclose(psnr(mse, (0, 1)), [6.0206, 20], atol=1e-4)
    np.testing.assert_allclose(psnr(mse, (-1, 1)), [12.0412, 26.0206], atol=1e-4)


@pytest.mark.parametrize(
    "call",
    [
        lambda: frechet_distance(np.zeros((1, 4)), np.zeros((5, 4))),
        lambda: frechet_distance(np.zeros((5, 3)), np.zeros((5, 4))),
        lambda: inception_score(np.ones((5, 2)) / 2, splits=10),
    ],
)
def test_too_little_is_refused(call):
    with pytest.raises(ValueError):
        call()
