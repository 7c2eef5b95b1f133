"""Figures of single images: restorations against originals."""

import jax
import jax.numpy as jnp
import numpy as np

WINDOW_SIGMA = 1.5
WINDOW_RADIUS = 5
"""The Gaussian window of SSIM, in pixels: 11×11, as Wang et al. 2004 have it."""


def masked_mse(originals: np.ndarray, restored: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Mean squared error inside the mask of every image, float64 `[image]`.

    Args:
      originals, restored: `[image, height, width, channel]` of one range.
      masks: bool `[image, height, width]`, or `[height, width]` for all images.
    """
    error = np.square(np.asarray(restored, np.float64) - np.asarray(originals, np.float64)).mean(axis=-1)
    return (error * masks).sum(axis=(1, 2)) / np.broadcast_to(masks, error.shape).sum(axis=(1, 2))


def psnr(mse: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of mean squared errors; errors below 1e-10 count as 1e-10."""
    peak = value_range[1] - value_range[0]
    return 10 * np.log10(peak**2 / np.maximum(mse, 1e-10))


def ssim(originals: np.ndarray, restored: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    """Structural similarity of whole images (Wang et al. 2004), float32 `[image]`.

    The mean over channels and over all windows that lie inside the image.

    Args:
      originals, restored: `[image, height, width, channel]` of one range.
      value_range: that range.

    Raises:
      ValueError: the images are smaller than a window.
    """
    if min(originals.shape[1:3]) < 2 * WINDOW_RADIUS + 1:
        raise ValueError(f"SSIM needs images of at least 11×11 pixels, not {originals.shape[1:3]}")
    count = len(originals)
    padding = [(0, (1 << (count - 1).bit_length()) - count)] + [(0, 0)] * 3  # few shapes to compile for
    low, high = value_range
    unit = [np.pad((np.asarray(x, np.float32) - low) / (high - low), padding) for x in (originals, restored)]
    return np.asarray(_ssim(*unit))[:count]


@jax.jit
def _ssim(x: jax.Array, y: jax.Array) -> jax.Array:
    weights = np.exp(-0.5 * (np.arange(-WINDOW_RADIUS, WINDOW_RADIUS + 1) / WINDOW_SIGMA) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)

    def smooth(image):
        for axis in (1, 2):
            length = image.shape[axis] - 2 * WINDOW_RADIUS
            image = sum(
                weight * jax.lax.slice_in_dim(image, shift, shift + length, axis=axis)
                for shift, weight in enumerate(weights)
            )
        return image

    mean_x, mean_y = smooth(x), smooth(y)
    var_x, var_y = smooth(x * x) - mean_x * mean_x, smooth(y * y) - mean_y * mean_y
    covariance = smooth(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity /= (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return jnp.mean(similarity, axis=(1, 2, 3))


def to_uint8(images: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    """Images as they are written to files and shown to the networks: 8 bits, clipped and rounded."""
    low, high = value_range
    return np.rint((np.clip(images, low, high) - low) * np.float32(255 / (high - low))).astype(np.uint8)
