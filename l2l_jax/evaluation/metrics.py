"""Figures that compare restorations with originals; NumPy arrays in, floats out."""

import numpy as np
import scipy.linalg


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


def frechet_distance(features: np.ndarray, other: np.ndarray) -> float:
    """Fréchet distance of the Gaussians fitted to two sets of features `[image, feature]`.

    ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½) in float64, with unbiased covariances (Heusel et al. 2017).
    The trace of the root is the sum of the roots of the eigenvalues of Σ₁^½ Σ₂ Σ₁^½, which also
    holds for singular covariances.

    Raises:
      ValueError: fewer than two images in a set, or different numbers of features.
    """
    first, second = (np.asarray(x, np.float64) for x in (features, other))
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"features must be [image, feature], not {first.shape} and {second.shape}")
    if min(len(first), len(second)) < 2:
        raise ValueError("a covariance needs at least two images in each set")
    mean_distance = np.square(first.mean(0) - second.mean(0)).sum()
    covariances = [np.atleast_2d(np.cov(x, rowvar=False)) for x in (first, second)]
    values, vectors = scipy.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    eigenvalues = scipy.linalg.eigvalsh(root @ covariances[1] @ root)
    trace = sum(np.trace(c) for c in covariances) - 2 * np.sqrt(np.maximum(eigenvalues, 0)).sum()
    return float(mean_distance + trace)


def inception_score(probabilities: np.ndarray, splits: int = 10) -> tuple[float, float]:
    """Inception Score (Salimans et al. 2016): mean and standard deviation over splits.

    exp(E KL(p(y|x) ‖ p(y))) of each of `splits` equal runs of images; a remainder is dropped.

    Args:
      probabilities: class probabilities `[image, class]`, in an order that does not depend on the
        class.
      splits: into how many parts the images are split.

    Raises:
      ValueError: fewer images than splits.
    """
    probabilities = np.asarray(probabilities, np.float64)
    size = len(probabilities) // splits
    if not size:
        raise ValueError(f"{len(probabilities)} images do not make {splits} splits")
    scores = []
    for part in probabilities[: size * splits].reshape(splits, size, -1):
        ratio = np.log(np.maximum(part, 1e-300)) - np.log(np.maximum(part.mean(0), 1e-300))[None]
        scores.append(np.exp((part * ratio).sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))
