"""VQGAN against the tokenizer of MAGE on `mage_tiny`, and its properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2l_jax.models import mapping
from l2l_jax.models.mage.convert import TABLE
from l2l_jax.models.mage.vqgan import VQGAN, VectorQuantizer
from tests.reference_arrays import Case, fill, nhwc

CASE = Case("mage_tiny")
TINY = VQGAN(
    codebook_size=64,
    codebook_width=16,
    base_channels=32,
    channel_multipliers=(1, 1, 2),
    num_res_blocks=1,
)


@pytest.fixture(scope="module")
def variables():
    keys = CASE.description["state_dict"]
    state_dict = {key: fill(key, shape) for key, shape, _ in keys if key.startswith("vqgan.")}
    shapes = jax.eval_shape(TINY.init, jax.random.key(0), nhwc(CASE["images"]))
    target = {"tokenizer": shapes["params"]}
    return {"params": mapping.to_flax(TABLE, state_dict, target)["tokenizer"]}


def apply(variables, x, method="__call__", module=TINY):
    return jax.jit(lambda v, x: module.apply(v, x, method=method))(variables, x)


def test_latent(variables):
    latent = apply(variables, nhwc(CASE["images"]), "latent")
    np.testing.assert_allclose(latent, nhwc(CASE["vq_prequant"]), atol=2e-5)


def test_tokens(variables):
    ids = apply(variables, nhwc(CASE["images"]), "tokenize")
    assert ids.shape == (2, 16, 16) and ids.dtype == jnp.int32
    # The least margin between the two nearest codes is 6e-4, far above float error.
    np.testing.assert_array_equal(ids.reshape(2, 256), CASE["token_indices"])


def test_reconstruction_and_codebook_loss(variables):
    restored, loss = apply(variables, nhwc(CASE["images"]))
    np.testing.assert_allclose(restored, nhwc(CASE["vq_decoded"]), atol=3e-5)
    assert loss.shape == (2,)
    np.testing.assert_allclose(loss.mean(), CASE["vq_emb_loss"], atol=1e-6)


def test_decoding_from_codes(variables):
    ids = CASE["token_indices"].reshape(2, 16, 16)
    restored = apply(variables, ids, "decode_ids")
    np.testing.assert_allclose(restored, nhwc(CASE["vq_decoded_from_code"]), atol=3e-5)
    vectors = TINY.apply(variables, ids, method=lambda module, ids: module.quantize.look_up(ids))
    np.testing.assert_array_equal(vectors, nhwc(CASE["vq_zq"]))


def test_gradients_of_the_quantiser():
    """By hand: straight through for the latents, and each code loss on its own side only."""
    rng = np.random.default_rng(0)
    latent = rng.standard_normal((2, 2, 2, 3), np.float32)
    codes = rng.standard_normal((5, 3), np.float32)
    weight = rng.standard_normal((2, 2, 2, 3), np.float32)

    def value(latent, codes, loss_weight):
        out, loss = VectorQuantizer(5, 3).apply({"params": {"embedding": codes}}, latent)
        return (out * weight).sum() + loss_weight * loss.sum()

    grad = jax.jit(jax.grad(value, argnums=(0, 1)))
    of_latent, of_codes = grad(latent, codes, 0.0)
    np.testing.assert_array_equal(of_latent, weight)
    np.testing.assert_array_equal(of_codes, np.zeros_like(codes))

    of_latent, of_codes = grad(latent, codes, 1.0)
    squares = np.square(latent[..., None, :] - codes).sum(-1)
    nearest = squares.argmin(-1)
    pull = 2 * (latent - codes[nearest]) / 12  # mean over 2 · 2 places and 3 channels
    np.testing.assert_allclose(of_latent, weight + pull, atol=1e-6)
    expected = np.zeros_like(codes)
    np.add.at(expected, nearest, -0.25 * pull)
    np.testing.assert_allclose(of_codes, expected, atol=1e-6)


def test_few_channels_and_levels():
    """Sizes for digits: 16 × 16 pixels as 4 × 4 tokens, groups that divide 8 channels."""
    small = VQGAN(
        codebook_size=8,
        codebook_width=4,
        base_channels=8,
        channel_multipliers=(1, 2, 2),
        num_res_blocks=1,
        groups=4,
        channels=1,
    )
    images = jnp.zeros((3, 16, 16, 1))
    shapes = jax.eval_shape(small.init, jax.random.key(0), images)
    restored, loss = jax.eval_shape(small.apply, shapes, images)
    assert restored.shape == images.shape and loss.shape == (3,)
    ids = jax.eval_shape(lambda v, x: small.apply(v, x, method="tokenize"), shapes, images)
    assert ids.shape == (3, 4, 4)
