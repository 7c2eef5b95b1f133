"""MAE compared with facebookresearch/mae on `mae_tiny`, and its properties."""

import functools

import jax
import numpy as np
import pytest

from l2l_jax.models import mapping
from l2l_jax.models.layers.vit import patchify, sincos_position_table, unpatchify
from l2l_jax.models.mae.convert import TABLE
from l2l_jax.models.mae.model import MAE, random_masking
from tests.reference_arrays import Case, nhwc

CASE = Case("mae_tiny")
SIZES = dict(width=48, depth=2, num_heads=4, decoder_width=32, decoder_depth=2, decoder_num_heads=4)
TINY = MAE(image_size=32, patch_size=8, **SIZES)


@functools.cache
def tiny_params():
    return mapping.to_flax(TABLE, CASE.state_dict(), TINY.shapes(), TINY)


@pytest.fixture(scope="module")
def params():
    return tiny_params()


@pytest.fixture(scope="module")
def images():
    return nhwc(CASE["images"])


@pytest.fixture(scope="module")
def corrupted(images):
    return TINY.mask(images, CASE["noise"], kept=4)


def test_masking_patches_and_position_tables(corrupted, images):
    np.testing.assert_array_equal(corrupted["ids"], CASE["ids_keep"])
    np.testing.assert_array_equal(corrupted["ids_restore"], CASE["ids_restore"])
    np.testing.assert_array_equal(corrupted["ids_restore"] >= 4, CASE["mask"].astype(bool))
    np.testing.assert_array_equal(patchify(images, 8), CASE["target_patches"])
    restored = unpatchify(CASE["pred"], 8, 32, 32)
    np.testing.assert_array_equal(restored, nhwc(CASE["unpatchify_pred"]))
    # float64 sines rounded to float32: equal to the last bit.
    np.testing.assert_array_equal(sincos_position_table(48, 4)[None], CASE["pos_embed"])
    np.testing.assert_array_equal(sincos_position_table(32, 4)[None], CASE["decoder_pos_embed"])


def test_latent_prediction_losses_and_gradients(params, images, corrupted):
    normalized = TINY.replace(norm_pix_loss=True)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def compute(params):
        predicted = TINY.predict(params, corrupted)
        losses = [model.prediction_loss(predicted, images, corrupted) for model in (TINY, normalized)]
        return losses[0].mean(), (TINY.encode(params["encoder"], corrupted), predicted, losses)

    grads, (latent, predicted, losses) = compute(params)
    np.testing.assert_allclose(latent, CASE["latent"], atol=2e-5)
    np.testing.assert_allclose(predicted, CASE["pred"], atol=2e-5)
    for loss, name in zip(losses, ("false", "true"), strict=True):
        assert loss.shape == (3,)
        np.testing.assert_allclose(loss.mean(), CASE[f"loss_norm_pix_{name}"], atol=5e-6)
    grads = mapping.to_torch(TABLE, grads, TINY)
    for name in CASE._arrays.files:
        if name.startswith("grad/"):
            np.testing.assert_allclose(grads[name.removeprefix("grad/")], CASE[name], atol=1e-5, err_msg=name)


def test_masking_keeps_each_patch_equally_often():
    noise = jax.random.uniform(jax.random.key(0), (4000, 16))
    kept, _ = random_masking(noise, 4)
    counts = np.bincount(np.asarray(kept).ravel(), minlength=16)
    # 4,000 samples of 4 out of 16: mean 1,000, standard deviation 27.
    assert abs(counts - 1000).max() < 5 * 27


def test_inpaint_ignores_hidden_pixels_and_keeps_visible_pixels(params):
    images = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    mask = np.zeros((32, 32), bool)
    mask[8:24, 8:24] = True
    inpaint = jax.jit(lambda params, images: TINY.inpaint(params, images, mask, jax.random.key(0)))
    restored = inpaint(params, images)
    other = np.where(mask[..., None], 0.5, images).astype(np.float32)
    np.testing.assert_array_equal(restored, inpaint(params, other))
    np.testing.assert_array_equal(restored[:, ~mask], images[:, ~mask])
    assert np.abs(restored - images)[:, mask].max() > 0.01


def test_pixel_normalization_is_undone(params):
    """A model with pixel statistics on raw images equals a model without them on normalized images."""
    images = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    model = TINY.replace(pixel_mean=mean, pixel_std=std)
    plain = TINY.replace(value_range=(-9, 9))
    mask = np.zeros((32, 32), bool)
    mask[:16] = True
    normalized = ((images - mean) / std).astype(np.float32)
    expected, restored = (
        jax.jit(lambda p, images, m=m: m.inpaint(p, images, mask, jax.random.key(0)))(params, given)
        for m, given in ((plain, normalized), (model, images))
    )
    expected = np.asarray(expected) * std + mean
    np.testing.assert_allclose(restored, np.clip(expected, 0, 1), atol=1e-5)


@pytest.mark.parametrize(
    "wrong", [dict(image_size=30), dict(num_heads=5), dict(mask_ratio=1.0), dict(dtype="int8")]
)
def test_invalid_sizes_are_rejected(wrong):
    with pytest.raises(ValueError):
        TINY.replace(**wrong)
