"""FAST in two dimensions by hand, and a model with a filter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2l_jax.errors import UserError
from l2l_jax.evals.fast import FILTER, Filter, FilterConfig, fit, guarded, load_filter, mined, threshold_at
from l2l_jax.evals.features.classifier import SmallClassifier
from tests.audit.models import Memory

UNDESIRED = np.array([[2.0, 4.0], [4.0, 4.0]])
ACCEPTABLE = np.array([[0.0, 1.0], [0.0, -1.0]])
PLAIN = FilterConfig(augment=0, false_alarms="mean")


def test_direction_threshold_and_decisions():
    """The means are (3, 4) and (0, 0); the reference scores are 4.4, 5.6, 0.8, −0.8, with mean 2.5."""
    fitted = fit(UNDESIRED, ACCEPTABLE, PLAIN)
    np.testing.assert_allclose(fitted.direction, [0.6, 0.8], rtol=1e-6)
    assert fitted.threshold == pytest.approx(2.5)
    points = np.array([[4.0, 0.0], [0.0, 4.0], [5.0, -1.0]])
    np.testing.assert_allclose(fitted.scores(points), [2.4, 3.2, 2.2], rtol=1e-6)
    np.testing.assert_array_equal(fitted.blocks(points), [False, True, False])


@pytest.mark.parametrize("rate, alarms", [(0.0, 0), (0.05, 0), (0.1, 1), (0.3, 3), (0.39, 3)])
def test_threshold_at_a_false_positive_rate(rate, alarms):
    validation = np.random.default_rng(0).permutation(10)[:, None] * np.array([[0.6, 0.8]])
    fitted = fit(UNDESIRED, ACCEPTABLE, FilterConfig(augment=0, false_alarms=rate), validation=validation)
    assert fitted.blocks(validation).sum() == alarms
    assert threshold_at(np.arange(10.0), rate) == 9 - alarms


def test_direction_of_a_support_vector_machine():
    """Two columns of points at a distance of 1 in x; the means differ in y, the margin does not."""
    undesired, acceptable = np.array([[1.0, 0.0], [1.0, 4.0]]), np.array([[0.0, 0.0], [0.0, 1.0]])
    fitted = fit(undesired, acceptable, FilterConfig(direction="svm", augment=0, false_alarms="mean"))
    assert fitted.direction[0] > 0.9
    np.testing.assert_allclose(
        fit(undesired, acceptable, PLAIN).direction, np.array([2, 3]) / 13**0.5, rtol=1e-6
    )


def test_few_references_are_augmented_with_normal_samples():
    fitted = fit(UNDESIRED, ACCEPTABLE, FilterConfig(augment=1000, false_alarms="mean"))
    rng = np.random.default_rng(0)
    drawn = [rng.normal(mean, std, (1000, 2)) for mean, std in (((3, 4), (2**0.5, 0)), ((0, 0), (0, 2**0.5)))]
    undesired, acceptable = np.concatenate([UNDESIRED, drawn[0]]), np.concatenate([ACCEPTABLE, drawn[1]])
    z = undesired.mean(0) - acceptable.mean(0)
    np.testing.assert_allclose(fitted.direction, z / np.linalg.norm(z), rtol=1e-6)
    scores = np.concatenate([undesired, acceptable]) @ fitted.direction
    assert fitted.threshold == pytest.approx(scores.mean())


def test_mined_references_score_below_half_of_the_lowest_undesired_score():
    """Relative to the pool's mean 0, undesired references score 3 and 5 along x; four are below 1.5."""
    undesired = np.array([[3.0, 1.0], [5.0, -1.0]])
    pool = np.array([[-9.0, 0.0], [1.4, 3.0], [1.6, 0.0], [0.0, 9.0], [-1.0, -12.0], [7.0, 0.0]])
    assert pool.sum() == 0
    selected = {int(i) for seed in range(40) for i in mined(undesired, pool, np.random.default_rng(seed))}
    assert selected == {0, 1, 3, 4}
    assert len(mined(undesired, pool, np.random.default_rng(0))) == 2
    alike = np.array([[1.0, 0.0], [-1.0, 0.0]]) * 1e-9 - undesired.mean(0)
    with pytest.raises(UserError, match="No acceptable references can be mined"):
        mined(-undesired, alike, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((UNDESIRED[:0], ACCEPTABLE, PLAIN), "There are 0 undesired references"),
        ((UNDESIRED, ACCEPTABLE[:1], PLAIN), "There are 1 acceptable references"),
        ((UNDESIRED, np.zeros((2, 3)), PLAIN), "have 2 and 3 features"),
        ((UNDESIRED, ACCEPTABLE, FilterConfig()), "needs validation images"),
    ],
)
def test_invalid_references(arguments, message):
    with pytest.raises(UserError, match=message):
        fit(*arguments)


def test_save_and_load_filter(tmp_path):
    card = {"features": "encoder", "weights": "abc"}
    fitted = fit(UNDESIRED, ACCEPTABLE, PLAIN)._replace(card=card, network={"w_0": np.eye(2)})
    fitted.save(tmp_path / "filter.safetensors")
    again = load_filter(tmp_path / "filter.safetensors")
    np.testing.assert_array_equal(again.direction, fitted.direction)
    np.testing.assert_array_equal(again.network["w_0"], np.eye(2))
    assert again.threshold == pytest.approx(fitted.threshold) and again.card == card
    with pytest.raises(UserError, match="fitted for another model or network"):
        again.scores(np.zeros((1, 3)))


MODEL, MASK = Memory(image_size=4), np.zeros((4, 4), bool)
MASK[1:3, 1:3] = True
IMAGES = np.random.default_rng(0).random((6, 4, 4, 3), np.float32)


def inpainted(model, params, images=IMAGES):
    return np.asarray(jax.jit(lambda p, x: model.inpaint(p, x, MASK, jax.random.key(0)))(params, images))


def test_filtered_model_returns_a_gray_mask_for_rejected_images():
    """The features of the model are its input averaged over positions: mean red, green and blue."""
    params = {"encoder": IMAGES[::-1]}
    plain = inpainted(MODEL, params)
    red = np.where(MASK[..., None], 0.5, IMAGES)[..., 0].mean(axis=(1, 2))
    fitted = Filter(np.float32([1, 0, 0]), float(np.median(red)), {}, {})
    model = guarded(MODEL)
    result = inpainted(model, {**params, FILTER: fitted.part()})
    gray = np.where(MASK[..., None], 0.5, IMAGES)
    expected = np.where((red > np.median(red))[:, None, None, None], gray, plain)
    np.testing.assert_array_equal(result, expected.astype(np.float32))
    assert 0 < (red > np.median(red)).sum() < 6
    np.testing.assert_array_equal(inpainted(model, params), plain)  # without a filter
    assert repr(model) == repr(MODEL)
    other = np.where(MASK[..., None], 1, IMAGES)  # masked pixels are not read
    again = inpainted(model, {**params, FILTER: fitted.part()}, other)
    np.testing.assert_array_equal(again[:, MASK], result[:, MASK])


def test_filter_can_read_the_reconstruction():
    """The feature network returns the mean byte of the image."""
    params, network = {"encoder": IMAGES}, jnp.float32(2)
    plain = inpainted(MODEL, params)
    mean = 2 * np.rint(plain * 255).mean(axis=(1, 2, 3))
    fitted = Filter(np.ones(1, np.float32), float(np.sort(mean)[2]), {}, {})

    def outputs(weight, pixels):
        assert pixels.dtype == jnp.uint8
        return weight * pixels.astype(jnp.float32).mean(axis=(1, 2, 3))[:, None]

    result = inpainted(guarded(MODEL, outputs), {**params, FILTER: fitted.part(network)})
    refused = (result[:, MASK] == 0.5).all(axis=(1, 2))
    np.testing.assert_array_equal(refused, mean > np.sort(mean)[2] + 1e-3)


def test_small_classifier_in_jax():
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 66, 66, 3), np.uint8), np.arange(40) % 2
    network = SmallClassifier(images, labels)
    result = network.outputs(network.params, jnp.asarray(images))["features"]
    np.testing.assert_allclose(result, network(images)["features"], rtol=1e-4, atol=1e-5)
