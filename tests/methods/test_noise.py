"""Noise images against NumPy by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2l_jax import noise_images


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).beta(2, 5, (64, 16, 16, 3)).astype(np.float32)


def test_normal_has_the_statistics_of_the_batch(images):
    wide = (-10.0, 10.0)  # no clipping: the moments are those of the pixels
    noise = np.asarray(noise_images(images, jax.random.key(0), "normal", value_range=wide))
    # 49,152 draws: the standard error of the mean is std / 222.
    assert abs(noise.mean() - images.mean()) < 4 * images.std() / 222
    np.testing.assert_allclose(noise.std(), images.std(), rtol=0.02)


def test_normal_is_the_standard_draw_scaled_and_clipped(images):
    key = jax.random.key(7)
    gauss = np.asarray(jax.random.normal(key, images.shape))
    expected = np.clip(gauss * images.std(ddof=1) + images.mean(), 0, 1)
    np.testing.assert_allclose(noise_images(images, key, "normal"), expected, atol=1e-5)


def test_uniform_fills_the_range(images):
    noise = np.asarray(noise_images(images, jax.random.key(0), "uniform", value_range=(-1, 1)))
    counts, _ = np.histogram(noise, bins=10, range=(-1, 1))
    # 10 equal bins of 49,152 draws: mean 4,915, standard deviation 67.
    assert abs(counts - 4915.2).max() < 5 * 67 and noise.min() >= -1 and noise.max() < 1


def test_constant_is_the_mean(images):
    noise = np.asarray(noise_images(images, jax.random.key(0), "constant"))
    np.testing.assert_allclose(noise, np.full(images.shape, images.mean()), rtol=1e-5)


@pytest.mark.parametrize("kind", ["normal", "constant"])
def test_statistics_are_global_under_pmap(images, kind):
    """Eight devices see the statistics of all their rows, not of their own."""
    rows = images.reshape(8, 8, 16, 16, 3) * np.arange(1, 9, dtype=np.float32).reshape(8, 1, 1, 1, 1)
    wide = (-1000.0, 1000.0)
    draw = jax.pmap(
        lambda x: noise_images(x, jax.random.key(0), kind, value_range=wide, axis_name="batch"),
        axis_name="batch",
    )
    noise = np.asarray(draw(rows))
    np.testing.assert_allclose(noise.mean(axis=(1, 2, 3, 4)), np.full(8, rows.mean()), rtol=0.05)
    if kind == "normal":
        np.testing.assert_allclose(noise.std(axis=(1, 2, 3, 4)), np.full(8, rows.std()), rtol=0.05)
        assert np.abs(noise[0] - noise[1]).max() > 0.1  # devices draw different rows


@pytest.mark.parametrize("wrong", [dict(kind="gaussian"), dict(value_range=(1, 0))])
def test_mistakes_are_refused(images, wrong):
    with pytest.raises(ValueError):
        noise_images(jnp.asarray(images), jax.random.key(0), **wrong)


@pytest.mark.parametrize("kind", ["normal", "uniform", "constant"])
def test_integer_images_are_refused(kind):
    with pytest.raises(TypeError, match=r"uint8.*value range"):
        noise_images(jnp.zeros((2, 4, 4, 3), jnp.uint8), jax.random.key(0), kind)


def test_statistics_of_half_precision_images_are_float32():
    """Summed in bfloat16, 49,152 pixels would have lost their mean."""
    images = jnp.asarray(np.random.default_rng(0).uniform(0.4, 0.6, (64, 16, 16, 3)), jnp.bfloat16)
    noise = noise_images(images, jax.random.key(0), "normal")
    assert noise.dtype == jnp.bfloat16
    pixels, drawn = np.asarray(images, np.float64), np.asarray(noise, np.float64)
    assert abs(drawn.mean() - pixels.mean()) < 1e-3 and abs(drawn.std() / pixels.std() - 1) < 0.02
