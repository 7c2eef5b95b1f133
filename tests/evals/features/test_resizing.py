"""Resizing compared with clean-fid's resizers (`fid_stats`) and with Pillow."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from l2l_jax.evals.features.resizing import resized, resizing_matrix
from tests.reference_arrays import Case

CASE = Case("fid_stats")


def one(image, height, width, *args, **options):
    return np.asarray(resized(jnp.asarray(image)[None], height, width, *args, **options))[0]


@pytest.mark.parametrize("name", ["resize_clean_down", "resize_clean_up"])
def test_clean_fid(name):
    expected = CASE[name]
    actual = one(CASE["img"], *expected.shape[:2], "bicubic")
    np.testing.assert_allclose(actual, expected, atol=2e-4)


@pytest.mark.parametrize(
    ("name", "kind", "options", "tolerance"),
    [
        ("resize_clean_299_sample", "bicubic", {}, 2e-4),
        # PyTorch computes positions between pixels in float32.
        ("resize_legacy_pytorch_sample", "bilinear", {"antialias": False}, 2e-3),
    ],
)
def test_inceptions_size(name, kind, options, tolerance):
    result = one(CASE["img"], 299, 299, kind, **options)[::13, ::13]
    np.testing.assert_allclose(result, CASE[name], atol=tolerance)


def test_pytorch_fid_of_float_images():
    case = Case("inception_fid")
    matrix = resizing_matrix(96, 299, "bilinear", antialias=False)[::13]
    result = np.einsum("ui,vj,bcij->bcuv", matrix, matrix, case["x"].astype(np.float64))
    np.testing.assert_allclose(result, case["resized_sample"], atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(224, 224), (17, 23), (40, 30)])
def test_resizing_of_bytes_matches_pillow(height, width):
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC), int)
    actual = one(image, height, width, "bicubic", bytes_between=True)
    assert (actual == np.round(actual)).all()
    # Pillow's weights are multiples of 2^-22, so values close to one half may be rounded differently.
    assert np.abs(actual - expected).max() <= 1
    assert (actual != expected).mean() < 1e-3


def test_images_of_the_target_size_are_unchanged():
    for options in (dict(), dict(bytes_between=True), dict(antialias=False)):
        np.testing.assert_array_equal(one(CASE["img"], 40, 56, "bicubic", **options), CASE["img"])
