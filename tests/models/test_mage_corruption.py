"""What MAGE sees in training when the pixels of masked tokens are painted."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.models.test_mage import DIGITS, random_params

PAINTED = dataclasses.replace(DIGITS, paint_masked=True, dropped=0.0, dropout=0.0)


corrupt, tokenize = jax.jit(PAINTED.corrupt), jax.jit(PAINTED.tokenize)


@pytest.fixture(scope="module")
def digits():
    return random_params(PAINTED)


def pixels(tokens):
    """`[batch, 16]` → `[batch, 16, 16, 1]`: a token stands for 4×4 pixels."""
    return np.kron(np.asarray(tokens).reshape(-1, 4, 4), np.ones((4, 4), bool))[..., None]


def test_hidden_pixels_do_not_reach_the_visible_tokens(digits):
    """Targets come from whole images; what is seen is the same whatever the mask hides."""
    a, b = np.random.default_rng(0).random((2, 3, 16, 16, 3), np.float32)
    key = jax.random.key(1)
    corrupted = corrupt(digits, a, key)
    other = corrupt(digits, np.where(pixels(corrupted["masked"]), b, a), key)
    np.testing.assert_array_equal(corrupted["ids"], other["ids"])
    np.testing.assert_array_equal(corrupted["targets"], tokenize(digits, a))
    visible = ~np.asarray(corrupted["masked"])
    assert np.any(np.asarray(corrupted["targets"])[visible] != np.asarray(other["targets"])[visible])


def test_visible_tokens_are_those_of_restoration(digits):
    """The image painted in NumPy, tokenised, with the mask token where hidden."""
    images = np.random.default_rng(0).random((3, 16, 16, 3), np.float32)
    corrupted = corrupt(digits, images, jax.random.key(1))
    color = np.array(PAINTED.hole_color, np.float32).reshape(1, 1, 1, 3)
    painted = np.where(pixels(corrupted["masked"]), color, images)
    ids = np.array(tokenize(digits, painted))
    ids[np.asarray(corrupted["masked"])] = PAINTED.mask_id
    np.testing.assert_array_equal(np.asarray(corrupted["ids"])[:, 1:], ids)


def test_tokenizer_is_trained_on_codes_of_painted_and_whole_images(digits):
    """By hand: latents of the whole image in the hidden squares, of the painted one elsewhere."""
    images = np.random.default_rng(0).random((3, 16, 16, 3), np.float32)
    stage = PAINTED.pretraining_stages()[0]
    inputs = jax.jit(stage.prepare)({}, images, jax.random.key(1))
    whole, painted, hidden = map(np.asarray, inputs)
    np.testing.assert_array_equal(whole, images)
    changed = np.any(painted != images, axis=-1, keepdims=True)
    np.testing.assert_array_equal(changed, pixels(hidden))
    assert 0 < hidden.mean() < 1

    variables = {"params": digits["tokenizer"]}
    latent = jax.jit(lambda x: PAINTED.tokenizer.apply(variables, x, method="latent"))
    mixed = np.where(hidden[..., None], latent(images), latent(painted))
    codes = np.asarray(digits["tokenizer"]["quantize"]["embedding"])
    ids = np.square(mixed[..., None, :] - codes.reshape(1, 1, 1, *codes.shape)).sum(-1).argmin(-1)
    codebook = 1.25 * np.square(codes[ids] - mixed).mean(axis=(1, 2, 3))
    restored = jax.jit(PAINTED.decode_ids)(digits, ids.reshape(3, 16))
    expected = np.square(restored - images).mean(axis=(1, 2, 3)) + codebook
    losses = jax.jit(stage.loss)({"tokenizer": digits["tokenizer"]}, inputs)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
