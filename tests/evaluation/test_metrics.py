"""Figures of single images, by hand."""

import numpy as np

from l2l_jax.evaluation.metrics import hole_mse, psnr


def test_mse_counts_the_hole_only():
    originals = np.zeros((2, 4, 4, 3), np.float32)
    restored = np.full_like(originals, 9)
    hole = np.zeros((4, 4), bool)
    hole[1:3, 1:3] = True
    restored[0, hole], restored[1, hole] = 0.5, 0.1
    mse = hole_mse(originals, restored, hole)
    np.testing.assert_allclose(mse, [0.25, 0.01], rtol=1e-6)
    # 10 log10(1 / 0.25) and 20 dB; a range of 2 adds 6.02 dB.
    np.testing.assert_allclose(psnr(mse, (0, 1)), [6.0206, 20], atol=1e-4)
    np.testing.assert_allclose(psnr(mse, (-1, 1)), [12.0412, 26.0206], atol=1e-4)
