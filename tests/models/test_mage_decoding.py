"""Inpainting with MAGE compared with the release on `mage_inpaint_tiny`, and its properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from PIL import Image, ImageFilter

from l2l_jax.models.mage import decoding
from tests.models.test_mage import DIGITS, TINY, random_params, tiny_params
from tests.reference_arrays import Case, nhwc

CASE = Case("mage_inpaint_tiny")
MASK = np.zeros((64, 64), bool)
MASK[16:48, 16:48] = True
SCHEDULE = decoding.decoding_schedule(256, hidden=100, steps=20, choice_temperature=6.0)


@pytest.fixture(scope="module")
def params():
    return tiny_params()


@pytest.fixture(scope="module")
def digits():
    return random_params(DIGITS)


@pytest.fixture
def greedy(monkeypatch):
    """Use zero Gumbel noise, because the reference takes the most likely token without noise."""
    monkeypatch.setattr(jax.random, "gumbel", lambda key, shape: jnp.zeros(shape))


def release_blur(mask: np.ndarray) -> np.ndarray:
    """The release's blur: Pillow's approximation of a Gaussian, in steps of 1/255."""
    image = Image.fromarray(np.uint8(mask * 255)).filter(ImageFilter.GaussianBlur(radius=7))
    return np.float32(image) / 255


def test_schedule():
    assert len(SCHEDULE.mask_lengths) == len(CASE["executed_steps"])
    np.testing.assert_array_equal(SCHEDULE.mask_lengths, CASE["step_mask_len"])
    expected = 6.0 * (1 - (CASE["executed_steps"] + 1) / 20)
    np.testing.assert_allclose(SCHEDULE.temperatures, expected, atol=1e-6)


def test_every_step_of_the_schedule_decodes_tokens():
    """With few tokens, each step still decodes one, and only the last step leaves none masked."""
    lengths = decoding.decoding_schedule(16, hidden=4, steps=20, choice_temperature=1.0)[0]
    # cos(π/2 · i/20) < 1/4 for i = 17 … 20, of 16 tokens: ⌊3.7⌋, ⌊2.5⌋, ⌊1.3⌋, 0.
    np.testing.assert_array_equal(lengths, [3, 2, 1, 1])
    nothing = decoding.decoding_schedule(16, hidden=0, steps=20, choice_temperature=1.0)
    assert nothing.mask_lengths.size == 0


def test_hidden_tokens():
    hidden = decoding.hidden_tokens(MASK, patch_size=4, margin=1)
    np.testing.assert_array_equal(hidden[None], CASE["token_all_mask"].astype(bool))
    one_pixel = np.zeros((16, 16), bool)
    one_pixel[7, 4] = True
    hidden = decoding.hidden_tokens(one_pixel, patch_size=4, margin=0)
    np.testing.assert_array_equal(np.nonzero(hidden)[0], [1 * 4 + 1])


def test_blend_weights():
    weights = decoding.blend_weights(MASK, margin=3, sigma=0.0)
    np.testing.assert_array_equal(weights, CASE["paste_mask"][0, 0])
    # Three box blurs, rounded to steps of 1/255, against a true Gaussian.
    blurred = decoding.blend_weights(MASK, margin=3, sigma=7.0)
    np.testing.assert_allclose(blurred, release_blur(weights), atol=0.02)
    border = ~MASK  # outpainting: pixels outside the image are those at its edge
    blurred = decoding.blend_weights(border, margin=0, sigma=7.0)
    np.testing.assert_allclose(blurred, release_blur(border), atol=0.02)


def test_every_step(params):
    """Each step starts from the reference's tokens, so that differences do not accumulate."""
    ids = jnp.asarray(CASE["step_input_ids"][:, 1:])
    logits = jax.jit(TINY.complete)(params, ids)
    np.testing.assert_allclose(logits[0], CASE["step_first_logits"], atol=2e-5)
    np.testing.assert_allclose(logits[-1], CASE["step_last_logits"], atol=2e-5)

    @jax.jit
    @jax.vmap
    def step(logits, ids, mask_length):
        zeros = jnp.zeros_like(logits)
        done = decoding.decoding_step(
            logits[None], ids[None], TINY.mask_id, mask_length, zeros[None], zeros[None, :, 0]
        )
        return jax.tree.map(lambda x: x[0], done)

    done = step(logits, ids, SCHEDULE.mask_lengths)
    unknown = np.asarray(ids == TINY.mask_id)
    # All but one of 1,536 tokens have a margin above 1e-4.
    clear = CASE["step_logit_margin"] > 5e-5
    assert clear.sum() >= clear.size - 1
    expected = np.where(unknown, CASE["step_sampled_ids"], ids)
    np.testing.assert_array_equal(np.asarray(done.sampled)[clear], expected[clear])
    probability = np.exp(done.confidence)
    np.testing.assert_allclose(probability[unknown], CASE["step_selected_probs"][unknown], atol=2e-6)
    assert np.all(np.isinf(np.asarray(done.confidence)[~unknown]))
    # Log-probabilities on either side of the threshold differ by at least 3.6e-4.
    np.testing.assert_array_equal(done.ids == TINY.mask_id, CASE["step_masking"].astype(bool))


@pytest.mark.slow
def test_complete_inpainting(params, greedy):
    """Image to image: tokens, steps, decoded image and blending."""

    @jax.jit
    def ids_and_image(params, images):
        ids = jnp.where(CASE["token_all_mask"] > 0, TINY.mask_id, CASE["token_indices_initial"])
        ids = decoding.decode_masked(
            lambda ids: TINY.complete(params, ids), ids, TINY.mask_id, SCHEDULE, jax.random.key(0)
        )
        restored = TINY.inpaint(params, images, MASK, jax.random.key(0))
        return ids, TINY.decode_ids(params, ids), restored

    ids, decoded, restored = ids_and_image(params, nhwc(CASE["images_original"]))
    np.testing.assert_array_equal(ids, CASE["final_ids"])
    np.testing.assert_allclose(decoded, nhwc(CASE["decoded"]), atol=3e-5)
    # With the exact Gaussian in place of Pillow's; the reference rounds down to whole levels.
    weight = decoding.blend_weights(MASK, margin=3, sigma=7.0)[None, ..., None]
    change = weight - release_blur(CASE["paste_mask"][0, 0])[None, ..., None]
    decoded, painted = nhwc(CASE["decoded"]), nhwc(CASE["images_masked"])
    levels = 255 * (np.asarray(restored) - change * (decoded - painted))
    exact = (restored > 0) & (restored < 1) & (levels > 0) & (levels < 255)  # nothing clipped
    assert exact.mean() > 0.5
    difference = (levels - CASE["final_uint_image"][None])[exact]
    assert difference.min() > -0.01 and difference.max() < 1.01


def test_inpaint_ignores_hidden_pixels_and_keeps_visible_pixels(digits):
    images = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
    mask = np.zeros((16, 16), bool)
    mask[4:11, 4:12] = True  # one row of the lower hidden tokens is visible and unchanged
    inpaint = jax.jit(lambda params, images, key: DIGITS.inpaint(params, images, mask, key))
    restored = np.asarray(inpaint(digits, images, jax.random.key(0)))
    other = np.where(mask[..., None], 0.5, images).astype(np.float32)
    np.testing.assert_array_equal(restored, inpaint(digits, other, jax.random.key(0)))
    np.testing.assert_array_equal(restored[:, ~mask], images[:, ~mask])
    assert np.abs(restored - images)[:, mask].max() > 0.01
    assert np.any(restored != inpaint(digits, images, jax.random.key(1)))


def test_misfit_of_a_sample_covers_codes_next_to_hidden_ones(digits, monkeypatch):
    """Logits depend only on the position; the sample is that of inpainting."""
    logits = np.random.default_rng(1).normal(size=(1, 16, 8)).astype(np.float32)
    monkeypatch.setattr(type(DIGITS), "complete", lambda self, params, ids: jnp.asarray(logits))
    images = np.random.default_rng(0).random((1, 16, 16, 3), np.float32)
    mask, key = np.zeros((16, 16), bool), jax.random.key(0)
    mask[4:12, 4:12] = True
    drawn, misfit = jax.jit(lambda params: DIGITS.sample(params, images, mask, key))(digits)
    inpaint = jax.jit(lambda params: DIGITS.inpaint(params, images, mask, key))
    np.testing.assert_array_equal(drawn, inpaint(digits))
    color = np.array(DIGITS.hole_color, np.float32)
    painted = np.where(mask[..., None], color, images)
    codes = np.asarray(jax.jit(DIGITS.tokenize)(digits, painted))[0]
    ring = np.setdiff1d(np.arange(16), [5, 6, 9, 10])
    expected = scipy.special.log_softmax(logits[0], axis=-1)[ring, codes[ring]].mean()
    np.testing.assert_allclose(misfit, [-expected], rtol=1e-5)


def test_outpainting_keeps_pixels_outside_the_blending_zone(digits):
    model = DIGITS.replace(blend_margin=1, blend_sigma=0.5)
    images = np.random.default_rng(0).random((1, 16, 16, 3), np.float32)
    mask = np.ones((16, 16), bool)
    mask[2:14, 2:14] = False
    restored = jax.jit(lambda params: model.inpaint(params, images, mask, jax.random.key(0)))(digits)
    # The margin is one pixel, and SciPy truncates the Gaussian after four standard deviations.
    np.testing.assert_allclose(restored[:, 5:11, 5:11], images[:, 5:11, 5:11], atol=1e-6)
    assert np.abs(restored - images)[:, 2].max() > 1e-3


@pytest.mark.parametrize(
    "temperature, frequencies", [(1, [0.5, 0.3, 0.2]), (0.5, np.array([25, 9, 4]) / 38), (0, [1, 0, 0])]
)
def test_sampling_follows_the_softmax(temperature, frequencies):
    """With constant logits for all tokens, sampled codes have the softmax's frequencies, which at
    temperature ½ are the normalized squares."""
    logits = np.log([0.5, 0.3, 0.2]).astype(np.float32)
    ids = jnp.full((200, 64), 9)
    last = decoding.Schedule(np.zeros(1, np.int32), np.zeros(1, np.float32))

    @jax.jit
    def draw(key):
        logits_of = lambda ids: jnp.broadcast_to(logits[None, None], (*ids.shape, 3))  # noqa: E731
        return decoding.decode_masked(logits_of, ids, 9, last, key, temperature)

    drawn = draw(jax.random.key(0))
    share = np.bincount(np.asarray(drawn).ravel(), minlength=3) / drawn.size
    np.testing.assert_allclose(share, frequencies, atol=5 * np.sqrt(0.25 / drawn.size))


def test_noise_orders_equally_confident_tokens():
    """Three tokens are equally confident; noise raises one of them above the others."""
    logits = jnp.zeros((1, 4, 2))
    noise = jnp.array([[0.0, 3.0, 1.0, 2.0]])
    ids = jnp.array([[1, 5, 5, 5]])
    done = decoding.decoding_step(logits, ids, 5, jnp.int32(2), jnp.zeros((1, 4, 2)), noise)
    np.testing.assert_array_equal(done.ids, [[1, 0, 5, 5]])
    np.testing.assert_array_equal(done.sampled, [[1, 0, 0, 0]])
    expected = [[np.inf, *(np.log(0.5) + np.array([3.0, 1.0, 2.0]))]]
    np.testing.assert_allclose(done.confidence, expected, atol=1e-6)


def test_masks_that_hide_everything_are_rejected(digits):
    images = jnp.zeros((1, 16, 16, 3))
    with pytest.raises(ValueError, match="shape"):
        DIGITS.inpaint(digits, images, np.zeros((8, 8), bool), jax.random.key(0))
    with pytest.raises(ValueError, match="every token"):
        DIGITS.inpaint(digits, images, np.ones((16, 16), bool), jax.random.key(0))
