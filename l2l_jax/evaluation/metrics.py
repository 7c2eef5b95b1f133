"""Figures that compare restorations with originals; NumPy arrays in, floats out."""

import numpy as np


def hole_mse(originals: np.ndarray, restored: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Mean squared error inside the hole of every image, `[image]`.

    Args:
      originals, restored: `[image, height, width, channel]` of one range.
      hole: bool `[height, width]`.
    """
    error = np.asarray(restored, np.float64)[:, hole] - np.asarray(originals, np.float64)[:, hole]
    return np.square(error).mean(axis=(1, 2))


def psnr(mse: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of mean squared errors; errors below 1e-10 count as 1e-10."""
    peak = value_range[1] - value_range[0]
    return 10 * np.log10(peak**2 / np.maximum(mse, 1e-10))
