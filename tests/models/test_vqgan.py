"""VQGAN compared with the tokenizer of MAGE on `mage_tiny`, and its properties."""

import jax
import jax.numpy as jnp
import numpy as np

from l2l_jax.models import mapping
from l2l_jax.models.mage.convert import TABLE
from l2l_jax.models.mage.vqgan import VQGAN, Levels, VectorQuantizer
from tests.reference_arrays import Case, fill, nhwc

CASE = Case("mage_tiny")
TINY = VQGAN(codebook_size=64, codebook_width=16, channels=3, levels=Levels(32, (1, 1, 2), num_res_blocks=1))
IMAGES = nhwc(CASE["images"])


def test_latents_tokens_reconstruction_and_decoding():
    keys = CASE.description["state_dict"]
    state_dict = {key: fill(key, shape) for key, shape, _ in keys if key.startswith("vqgan.")}
    target = {"tokenizer": jax.eval_shape(TINY.init, jax.random.key(0), IMAGES)["params"]}
    variables = {"params": mapping.to_flax(TABLE, state_dict, target)["tokenizer"]}
    given = CASE["token_indices"].reshape(2, 16, 16)

    @jax.jit
    def compute(variables):
        def apply(x, method):
            return TINY.apply(variables, x, method=method)

        latents, ids = apply(IMAGES, lambda module, x: module.encoder(x)), apply(IMAGES, "tokenize")
        vectors = apply(given, lambda module, ids: module.quantize.look_up(ids))
        return latents, ids, apply(IMAGES, "__call__"), apply(given, "decode_ids"), vectors

    latents, ids, (restored, loss), decoded, vectors = compute(variables)
    np.testing.assert_allclose(latents, nhwc(CASE["vq_prequant"]), atol=2e-5)
    assert ids.shape == (2, 16, 16) and ids.dtype == jnp.int32
    # The minimum margin between the two nearest codes is 6e-4, far above float error.
    np.testing.assert_array_equal(ids, given)
    np.testing.assert_allclose(restored, nhwc(CASE["vq_decoded"]), atol=3e-5)
    assert loss.shape == (2,)
    np.testing.assert_allclose(loss.mean(), CASE["vq_emb_loss"], atol=1e-6)
    np.testing.assert_allclose(decoded, nhwc(CASE["vq_decoded_from_code"]), atol=3e-5)
    np.testing.assert_array_equal(vectors, nhwc(CASE["vq_zq"]))


def test_gradients_of_the_quantizer():
    """Straight-through gradients for the latents; each code loss has a gradient on one side only."""
    rng = np.random.default_rng(0)
    latent, weight = rng.standard_normal((2, 2, 2, 2, 3), np.float32)
    codes = rng.standard_normal((5, 3), np.float32)

    def value(latent, codes, loss_weight):
        out, loss = VectorQuantizer(5, 3).apply({"params": {"embedding": codes}}, latent)
        return (out * weight).sum() + loss_weight * loss.sum()

    grad = jax.jit(jax.grad(value, argnums=(0, 1)))
    of_latent, of_codes = grad(latent, codes, 0.0)
    np.testing.assert_array_equal(of_latent, weight)
    np.testing.assert_array_equal(of_codes, np.zeros_like(codes))

    of_latent, of_codes = grad(latent, codes, 1.0)
    nearest = np.square(latent[..., None, :] - codes).sum(-1).argmin(-1)
    pull = 2 * (latent - codes[nearest]) / 12  # mean over 2 · 2 places and 3 channels
    np.testing.assert_allclose(of_latent, weight + pull, atol=1e-6)
    expected = np.zeros_like(codes)
    np.add.at(expected, nearest, -0.25 * pull)
    np.testing.assert_allclose(of_codes, expected, atol=1e-6)
