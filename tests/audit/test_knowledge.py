"""Calibrated errors and credit against brute force and counts by hand."""

import numpy as np
import pytest

from l2l_jax.audit.knowledge import calibrated_errors, credit, moments
from l2l_jax.evals.metrics import masked_mse

CONSTANT = np.linspace(-0.2, 0.4, 6 * 6 * 3).reshape(6, 6, 3)
MASK = np.zeros((6, 6), bool)
MASK[2:5, 1:4] = True


def calibrated(originals, inpainted):
    relative = moments(originals, inpainted, CONSTANT, MASK)
    return calibrated_errors(masked_mse(originals, inpainted, MASK), relative)


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    originals = CONSTANT + rng.standard_normal((40, 6, 6, 3))
    return originals, originals + 0.8 * rng.standard_normal(originals.shape)


def test_calibration_is_the_best_of_all_shares(images):
    originals, inpainted = images
    shares = np.linspace(0, 1, 1001)
    by_share = [masked_mse(originals, CONSTANT + a * (inpainted - CONSTANT), MASK) for a in shares]
    best = min(by_share, key=np.mean)
    assert best.mean() < 0.9 * masked_mse(originals, inpainted, MASK).mean()
    np.testing.assert_allclose(calibrated(originals, inpainted), best, rtol=0.02)
    assert calibrated(originals, inpainted).mean() == pytest.approx(best.mean(), rel=1e-5)


def test_exaggerated_and_blank_reconstructions_are_not_ignorance(images):
    """Scaled reconstructions have the same error, opposite ones that of the constant image."""
    originals, inpainted = images
    scaled = CONSTANT + 3 * (inpainted - CONSTANT)
    np.testing.assert_allclose(calibrated(originals, scaled), calibrated(originals, inpainted))
    opposite = np.where(MASK[..., None], 2 * CONSTANT - originals, 100.0)
    blank = masked_mse(originals, np.broadcast_to(CONSTANT, originals.shape), MASK)
    np.testing.assert_allclose(calibrated(originals, opposite), blank)


def test_timid_reconstructions_are_not_extended(images):
    """A share above 1 would add contrast that the model did not draw."""
    originals, _ = images
    timid = CONSTANT + 0.5 * (originals - CONSTANT)
    np.testing.assert_allclose(calibrated(originals, timid), masked_mse(originals, timid, MASK))


def test_credit_of_three_classes():
    """Class 9 is not one of the classes of the images."""
    labels, predicted = np.array([0, 0, 3, 3, 7]), np.array([0, 3, 9, 3, 0])
    np.testing.assert_array_equal(credit(predicted, labels), [1, -0.5, 0, 1, -0.5])
    constant, balanced = np.full(6, 3), np.array([0, 0, 3, 3, 7, 7])
    assert credit(constant, balanced).mean() == 0


def test_credit_of_a_single_class_is_correctness():
    np.testing.assert_array_equal(credit(np.array([4, 2]), np.array([4, 4])), [1, 0])
