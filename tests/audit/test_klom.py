"""KLoM: known divergences, and divergences of models sampled from known distributions."""

import numpy as np
import pytest
from scipy import integrate, stats

from l2l_jax.audit.klom import LARGEST, intervals, klom

RNG = np.random.default_rng(0)


def errors(models, images=4000, mean=0.0, deviation=0.2):
    """Return masked MSEs as the sum of an image effect and a model effect."""
    hard = np.random.default_rng(1).normal(-3, 1, images)
    return [np.exp(hard + RNG.normal(mean, deviation, images)) for _ in range(models)]


def test_divergence_of_an_image_equals_that_of_two_gaussians():
    """The integral of p log(p / q), for two unlearned and two retrained models and two images."""
    unlearned, retrained = np.log([[0.10, 0.40], [0.20, 0.50]]), np.log([[0.15, 0.30], [0.25, 0.40]])
    p, q = ((x.mean(0), np.sqrt(x.var(0, ddof=1).mean())) for x in (unlearned, retrained))
    for image, actual in enumerate(klom(np.exp(unlearned), np.exp(retrained))):
        own, other = stats.norm(p[0][image], p[1]), stats.norm(q[0][image], q[1])

        def density(x, own=own, other=other):
            return own.pdf(x) * (own.logpdf(x) - other.logpdf(x))

        expected, _ = integrate.quad(density, own.mean() - 12 * own.std(), own.mean() + 12 * own.std())
        assert actual == pytest.approx(expected, rel=1e-6)


def test_equal_models_do_not_diverge_and_shifts_scale_with_deviations():
    retrained = errors(3)
    np.testing.assert_allclose(klom(retrained, retrained), 0, atol=1e-12)
    middle = np.exp(np.mean(np.log(retrained), axis=0))
    np.testing.assert_allclose(klom([middle], retrained), 0, atol=1e-12)
    deviation = np.sqrt(np.var(np.log(retrained), axis=0, ddof=1).mean())
    np.testing.assert_allclose(klom([middle * np.exp(2 * deviation)], retrained), 2, rtol=1e-6)
    assert (klom([middle * 1e9], retrained) == LARGEST).all()


@pytest.mark.parametrize("count", [2, 5])
def test_divergence_of_a_held_out_retrained_model(count):
    """In expectation (1 + 1/n) / 2 for n models, and (1 + 1/(n − 1)) / 2 for one of them and the others."""
    result = intervals({"original": errors(1, mean=1), "unlearned": errors(1), "retrained": errors(count)})
    assert result["unlearned"].value == pytest.approx((1 + 1 / count) / 2, rel=0.1)
    assert result["retrained"].value == pytest.approx((1 + 1 / (count - 1)) / 2, rel=0.1)
    assert result["original"].value == pytest.approx((1 + 1 / count + 1 / 0.2**2) / 2, rel=0.1)
