"""Metrics of single images, compared with scikit-image and by hand."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.metrics import structural_similarity

from l2l_jax.data.transforms import in_range
from l2l_jax.evals.metrics import masked_mse, psnr, ssim, to_uint8


def test_mse_covers_only_the_mask_of_each_image():
    originals = np.zeros((2, 4, 4, 3), np.float32)
    restored = np.full_like(originals, 9)
    mask = np.zeros((4, 4), bool)
    mask[1:3, 1:3] = True
    restored[0, mask], restored[1, mask] = 0.5, 0.1
    mse = masked_mse(originals, restored, mask)
    np.testing.assert_allclose(mse, [0.25, 0.01], rtol=1e-6)
    # 10 log10(1 / 0.25) and 20 dB; a range of 2 adds 6.02 dB.
    np.testing.assert_allclose(psnr(mse, (0, 1)), [6.0206, 20], atol=1e-4)
    np.testing.assert_allclose(psnr(mse, (-1, 1)), [12.0412, 26.0206], atol=1e-4)
    restored = np.zeros((2, 2, 2, 3), np.float32)
    restored[0, 0], restored[1, 1] = 1, 2
    masks = np.array([[[True, True], [False, False]], [[True, False], [True, False]]])
    np.testing.assert_allclose(masked_mse(np.zeros_like(restored), restored, masks), [1, 2])


def test_ssim_matches_scikit_image():
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.normal(size=(3, 24, 32, 3)), (0, 3, 3, 0)) * 8
    other = smooth + rng.normal(size=smooth.shape) * np.array([0.05, 0.3, 1]).reshape(3, 1, 1, 1)
    options = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=-1)
    expected = [structural_similarity(*p, data_range=2.0, **options) for p in zip(smooth, other, strict=True)]
    assert expected[0] > 0.7 and expected[2] < 0.3
    # scikit-image uses values unchanged; our range begins at the minimum.
    shifted = [np.float32(x) for x in (smooth, other)]
    actual = ssim(*shifted, (0.0, 2.0))
    np.testing.assert_allclose(actual, expected, atol=2e-5)
    np.testing.assert_allclose(ssim(*(x - 1 for x in shifted), (-1.0, 1.0)), expected, atol=2e-5)
    with pytest.raises(ValueError, match="at least 11×11"):
        ssim(*(x[:, :10] for x in shifted), (0, 1))


def test_eight_bits_are_clipped_and_rounded():
    pixels = np.array([-1.2, -1, -0.996, 0, 0.999, 1.5], np.float32)
    np.testing.assert_array_equal(to_uint8(pixels, (-1, 1)), [0, 0, 1, 128, 255, 255])
    every = np.arange(256, dtype=np.uint8)
    for value_range in ((0.0, 1.0), (-1.0, 1.0)):
        np.testing.assert_array_equal(to_uint8(in_range(every, value_range), value_range), every)
