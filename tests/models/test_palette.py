"""Palette's inpainting compared with the release on `palette_process`, and the model's properties."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2l_jax.models import mapping
from l2l_jax.models.palette.convert import UNET as TABLE
from l2l_jax.models.palette.model import Palette
from tests.models.test_unet import TINY, parts_of
from tests.reference_arrays import Case, nhwc

CASE = Case("palette_process")
IMAGES = nhwc(CASE["y_0"])
MASK = CASE["mask"][0, 0].astype(bool)
FILLING = nhwc(CASE["y_cond"])  # only pixels inside the mask are read
SIX_STEPS = TINY.replace(sampling_steps=6, sampling_linear_start=0.01, sampling_linear_end=0.5)
SIZES = dict(inner_channel=8, channel_mults=(1,), res_blocks=1, attn_res=(), num_head_channels=8)
SIZES |= dict(image_size=16, channels=1, norm_groups=4, hole_bank_size=3)
DIGITS = Palette(sampler="ddim", sampling_steps=3, **SIZES)


@pytest.fixture(scope="module")
def student():
    return mapping.to_flax(TABLE, CASE.state_dict(), parts_of(TINY))


def test_predicted_noise(student):
    """Noise levels of t = 500, 20 and 0; reverse steps are tested in test_diffusion.py."""
    inputs = np.concatenate([FILLING, nhwc(CASE["ps/y_t"])], axis=-1)
    predict = jax.jit(lambda params, gamma: TINY.predict(params, {"inputs": inputs, "gamma": gamma}))
    for t in (500, 20, 0):
        predicted = predict(student, CASE[f"ps/{t}/noise_level"][:, 0])
        np.testing.assert_allclose(predicted, nhwc(CASE[f"ps/{t}/eps_hat"]), atol=1e-5)


@pytest.mark.slow
def test_six_step_inpainting(student):
    last = np.full((1, *IMAGES.shape), 5, np.float32)  # must not be used, because the last step has no noise
    noises = jnp.asarray(np.concatenate([np.moveaxis(CASE["rest/noises"], 2, -1), last]))
    draw = noises.__getitem__
    restore_six = jax.jit(lambda params, images: SIX_STEPS.inpaint_with(params, images, MASK, FILLING, draw))
    gammas = SIX_STEPS.reverse_steps.gamma[::-1]
    np.testing.assert_allclose(gammas, CASE["rest/gammas"], rtol=1.2e-7)
    restored = restore_six(student, IMAGES)
    np.testing.assert_allclose(restored, nhwc(CASE["rest/out"]), atol=3e-5)
    np.testing.assert_array_equal(restored[:, ~MASK], IMAGES[:, ~MASK])
    hidden = np.where(MASK[None, ..., None], np.float32(np.nan), IMAGES)
    np.testing.assert_array_equal(restored, restore_six(student, hidden))


corrupt, draw = jax.jit(DIGITS.corrupt), jax.jit(TINY.draw, static_argnums=1)


@pytest.fixture(scope="module")
def digits():
    return jax.jit(DIGITS.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def digit_images():
    return np.random.default_rng(0).uniform(-1, 1, (4, 16, 16, 1)).astype(np.float32)


def test_ddim_inpainting_matches_its_definition(digits, digit_images):
    """A new model predicts zero noise: x̂₀ = y/√γ, partly clipped, then Song et al. 2021, eq. 12."""
    mild = dict(timesteps=10, linear_start=0.02, linear_end=0.12)
    model = DIGITS.replace(**mild)
    mask = np.zeros((16, 16), bool)
    mask[4:9, 8:16] = True
    inpaint = jax.jit(lambda params, rng: model.inpaint(params, digit_images, mask, rng))
    key = jax.random.key(8)
    restored = inpaint(digits, key)
    noisy = np.asarray(jax.random.normal(jax.random.split(key)[0], digit_images.shape), np.float64)
    gammas = np.cumprod(1 - np.linspace(0.02, 0.12, 10))
    for t, before in ((9, 4), (4, 0), (0, None)):
        g, h = gammas[t], 1.0 if before is None else gammas[before]
        start = np.clip(noisy / np.sqrt(g), -1, 1)
        noise = (noisy - np.sqrt(g) * start) / np.sqrt(1 - g)
        noisy = np.sqrt(h) * start + np.sqrt(1 - h) * noise
    expected = np.where(mask[None, ..., None], noisy, digit_images)
    assert 0.2 < np.mean(np.abs(expected[:, mask]) < 1) < 0.8
    np.testing.assert_allclose(restored, expected, atol=2e-6)
    assert np.abs(restored - inpaint(digits, jax.random.key(9))).max() > 0.1


@pytest.mark.slow
def test_sampler_of_attacks_with_and_without_a_hint(digits, digit_images):
    """A new model predicts zero noise: the last step returns x̂₀ = y/√γ, clipped."""
    ancestral = dict(sampler="ancestral", sampling_linear_start=0.1, sampling_linear_end=0.3)
    model = dataclasses.replace(DIGITS, **ancestral)
    mask, key = np.zeros((16, 16), bool), jax.random.key(8)
    mask[4:12, 4:12] = True
    denoise = jax.jit(
        lambda params, start, scale: model.denoise(params, digit_images, mask, key, start, scale),
        static_argnums=1,
    )
    published = jax.jit(lambda params: model.inpaint(params, digit_images, mask, key))(digits)
    np.testing.assert_allclose(denoise(digits, 1.0, 1.0), published, atol=1e-5)
    assert np.abs(denoise(digits, 1.0, 2.0) - published).max() > 0.1
    noise = jax.random.normal(jax.random.split(key)[0], digit_images.shape)
    hint = np.clip(digit_images + np.sqrt(0.1 / 0.9) * noise, -1, 1)
    expected = np.where(mask[..., None], hint, digit_images)
    np.testing.assert_allclose(denoise(digits, 1 / 3, 1.0), expected, atol=1e-5)
    norm = jax.jit(lambda params: model.noise_norm(params, digit_images, mask, key))(digits)
    np.testing.assert_array_equal(norm, 0)


def test_misfit_of_a_sample_covers_the_ring_around_the_mask(digits, digit_images):
    mask, grown = np.zeros((2, 16, 16), bool)
    mask[4:12, 4:12], grown[3:13, 3:13] = True, True
    key = jax.random.key(8)
    sample = jax.jit(lambda params, noise: DIGITS.sample(params, digit_images, mask, key, noise))
    drawn, misfit = sample(digits, None)
    inpainted = jax.jit(lambda params: DIGITS.inpaint(params, digit_images, grown, key))(digits)
    np.testing.assert_allclose(drawn, inpainted, atol=1e-5)
    squares = np.square(inpainted - digit_images)[:, grown & ~mask]
    np.testing.assert_allclose(misfit, squares.mean((1, 2)), rtol=1e-4)
    noise = jax.random.normal(jax.random.split(key)[0], digit_images.shape)
    np.testing.assert_allclose(sample(digits, noise)[0], drawn, atol=1e-5)
    assert np.abs(sample(digits, -noise)[0] - drawn).max() > 0.1


def test_pretraining_a_new_model(digits, digit_images):
    """A new model predicts zero noise, so its loss is the squared noise in the mask."""
    (stage,) = DIGITS.pretraining_stages()
    inputs = jax.device_get(jax.jit(stage.prepare)(digits, digit_images, jax.random.key(1)))
    noise, mask = inputs["corrupted"]["noise"], inputs["corrupted"]["mask"]
    expected = [np.sum(n[h] ** 2) / 256 for n, h in zip(noise, mask, strict=True)]
    np.testing.assert_allclose(jax.jit(stage.loss)(digits, inputs), expected, rtol=1e-5)


def test_same_key_gives_same_corruption_for_other_images(digits, digit_images):
    """Student and teacher must receive the same mask, noise level and noise."""
    key = jax.random.key(3)
    a, b = (jax.device_get(corrupt(digits, x, key)) for x in (digit_images, np.zeros_like(digit_images)))
    for name in ("mask", "gamma", "noise"):
        np.testing.assert_array_equal(a[name], b[name])
    mask = np.asarray(a["mask"])
    np.testing.assert_array_equal(a["inputs"][mask][:, 0], b["inputs"][mask][:, 0])
    np.testing.assert_array_equal(a["inputs"][~mask], np.repeat(digit_images[~mask], 2, axis=-1))


@pytest.mark.parametrize("where", ["hole", "everywhere"])
def test_teacher_input_for_forget_images(digits, digit_images, where):
    model = DIGITS.replace(teacher_noise=where)
    key, noise = jax.random.key(3), np.full_like(digit_images, 0.5)
    corrupted = jax.device_get(corrupt(digits, digit_images, key))
    actual = jax.jit(model.corrupt_noise)(digits, digit_images, noise, key)
    mask, gamma = np.asarray(corrupted["mask"])[..., None], np.asarray(corrupted["gamma"]).reshape(4, 1, 1, 1)
    filling = np.where(mask, corrupted["inputs"][..., :1], digit_images)
    if where == "hole":
        conditioning, noisy = filling, np.where(mask, corrupted["noise"], digit_images)
    else:
        conditioning = np.where(mask, filling, noise)
        noisy = np.where(mask, np.sqrt(gamma) * 0.5 + np.sqrt(1 - gamma) * corrupted["noise"], noise)
    expected = np.concatenate([conditioning, noisy], axis=-1)
    np.testing.assert_allclose(actual["inputs"], expected, atol=5e-7)


def test_noise_levels_are_uniform_over_the_steps():
    masks = {"holes": np.ones((1, 2, 2), bool)}
    drawn = draw(masks, (8000, 2, 2, 1), jax.random.key(0))["gamma"]
    gammas = np.cumprod(1 - np.linspace(1e-6, 0.01, 2000))
    counts, _ = np.histogram(np.asarray(drawn), np.float32(gammas[::-1][[0, 500, 1000, 1500, 1999]]))
    # 8,000 samples in four ranges of 500 steps: mean 2,000, standard deviation 39.
    assert counts.sum() == 8000 and abs(counts - 2000).max() < 5 * 39


def test_masks_are_flipped_and_transposed():
    mask = np.zeros((4, 4), bool)
    mask[0, :3] = mask[1, 0] = True
    drawn = draw({"holes": mask[None]}, (200, 4, 4, 1), jax.random.key(0))["mask"]
    turned = [np.rot90(h, k) for k in range(4) for h in (mask, mask.T)]
    assert {h.tobytes() for h in np.asarray(drawn)} == {h.tobytes() for h in turned}


ALONE = dict(sampler="euler", teacher_noise="nowhere", training_holes="round", dtype="int8", timesteps=1)
ALONE |= dict(hole_bank_size=0, linear_end=1.0, sampling_schedule="sine", norm_groups=24, image_size=33)
ALONE |= dict(num_head_channels=24)
TOGETHER = [dict(sampler="ddim", timesteps=20, sampling_steps=21)]
TOGETHER += [dict(inner_channel=33, norm_groups=33, num_head_channels=33)]


@pytest.mark.parametrize("wrong", [*({name: value} for name, value in ALONE.items()), *TOGETHER])
def test_invalid_fields_are_rejected(wrong):
    with pytest.raises(ValueError):
        TINY.replace(**wrong)
