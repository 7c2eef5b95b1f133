"""Distances between sets of features and scores of sets of images, in float64."""

from __future__ import annotations  # jaxtyping is not needed at run time

from typing import TYPE_CHECKING

import numpy as np
import scipy.linalg
from scipy.linalg import blas, lapack

if TYPE_CHECKING:
    from jaxtyping import Float

    Features = Float[np.ndarray, "image feature"]
    Others = Float[np.ndarray, "other feature"]

BLOCK = 512  # number of rows of features, or of a kernel matrix, held in float64 at a time
KERNEL_SUBSET = 1000  # maximum subset size of the Kernel Inception Distance (Bińkowski et al. 2018)


def mean_and_covariance(
    features: Features,
) -> tuple[Float[np.ndarray, " feature"], Float[np.ndarray, "feature feature"]]:
    """Return the mean and the unbiased covariance of `[image, feature]`."""
    if len(features) < 2:
        raise ValueError("a covariance needs at least two images in each set")
    mean = features.mean(axis=0, dtype=np.float64)
    scatter = np.zeros((len(mean), len(mean)), order="F")
    for start in range(0, len(features), BLOCK):  # avoids a copy of all features in float64
        rows = features[start : start + BLOCK] - mean[None]
        scatter = blas.dsyrk(1.0, rows.T, beta=1.0, c=scatter, overwrite_c=1)  # the upper triangle
    scatter /= len(features) - 1
    for row in range(1, len(scatter)):
        scatter[row, :row] = scatter[:row, row]
    return mean, scatter


def frechet_distance(features: Features, other: Others) -> float:
    """Return the Fréchet distance of Gaussians fitted to two sets `[image, feature]` (Heusel et al. 2017).

    It is ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½), with unbiased covariances. With Σ₁ = LLᵀ, the trace of the
    root is the sum of the square roots of the eigenvalues of LᵀΣ₂L, also for singular covariances.

    Raises:
      ValueError: A set has fewer than two images, or the numbers of features differ.
    """
    _check(features, other)
    mean, factor = mean_and_covariance(features)
    other_mean, product = mean_and_covariance(other)
    distance = np.square(mean - other_mean).sum() + np.trace(factor) + np.trace(product)
    factor, order, rank, _ = lapack.dpstrf(factor, lower=1, overwrite_a=1)
    factor[:, rank:] = 0  # the remainder of a singular covariance
    order -= 1
    product = np.asfortranarray(product[np.ix_(order, order)])
    product = blas.dtrmm(1.0, factor, product, lower=1, trans_a=1, overwrite_b=1)
    product = blas.dtrmm(1.0, factor, product, side=1, lower=1, overwrite_b=1)
    eigenvalues = scipy.linalg.eigvalsh(product, overwrite_a=True, check_finite=False)
    return float(distance - 2 * np.sqrt(np.maximum(eigenvalues, 0)).sum())


def kernel_distance(
    features: Features,
    other: Others,
    *,
    subsets: int = 100,
    subset_size: int = KERNEL_SUBSET,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the mean and the standard deviation of the Kernel Inception Distance over subsets.

    Args:
      features: Features of one set, `[image, feature]`.
      other: Features of the other set.
      subsets: Number of pairs of subsets, each drawn without replacement.
      subset_size: Maximum number of images in a subset; the size of the smaller set if that is less.
      seed: Random seed.

    Raises:
      ValueError: A set has fewer than two images, or the numbers of features differ.
    """
    size = min(len(features), len(other), subset_size)
    rng, sets = np.random.default_rng(seed), (features, other)
    rows = [np.stack([rng.permutation(len(x))[:size] for _ in range(subsets)]) for x in sets]
    values = squared_discrepancies(features, other, *rows)
    return float(values.mean()), float(values.std())


def squared_discrepancies(
    features: np.ndarray, other: np.ndarray, rows: np.ndarray, other_rows: np.ndarray
) -> np.ndarray:
    """Return unbiased squared maximum mean discrepancies between subsets, `[subset]`.

    The kernel is (x·y / features + 1)³. Every entry of the kernel matrices is computed once, regardless of
    the number of subsets. `rows` and `other_rows` are row indices, `[subset, image of the subset]`.
    """
    _check(features, other)
    size = rows.shape[1]
    if size < 2:
        raise ValueError("a kernel distance needs at least two images in each set")
    sets = (np.asarray(features, np.float64), _members(rows, len(features)))
    others = (np.asarray(other, np.float64), _members(other_rows, len(other)))
    within = 0
    for x, members in (sets, others):
        diagonal = (np.einsum("ij,ij->i", x, x) / x.shape[1] + 1) ** 3
        within = within + _kernel_sums(x, members, x, members) - members @ diagonal
    return within / (size * (size - 1)) - 2 * _kernel_sums(*sets, *others) / size**2


def _check(features: np.ndarray, other: np.ndarray) -> None:
    if features.ndim != 2 or other.ndim != 2 or features.shape[1] != other.shape[1]:
        raise ValueError(f"features must be [image, feature], not {features.shape} and {other.shape}")


def _members(rows: np.ndarray, count: int) -> np.ndarray:
    """Count how often each of `count` rows is in each subset, `[subset, row]`."""
    return np.stack([np.bincount(subset, minlength=count) for subset in rows]).astype(np.float64)


def _kernel_sums(x: np.ndarray, in_x: np.ndarray, y: np.ndarray, in_y: np.ndarray) -> np.ndarray:
    """Sum the kernel over all pairs of a subset of `x` and the same subset of `y`, `[subset]`."""
    sums = np.zeros(len(in_x))
    for start in range(0, len(x), BLOCK):
        block = slice(start, start + BLOCK)
        kernel = x[block] @ y.T
        kernel /= x.shape[1]
        kernel += 1
        kernel = kernel * kernel * kernel
        sums += np.einsum("sj,sj->s", in_x[:, block] @ kernel, in_y)
    return sums


def inception_score(probabilities: Float[np.ndarray, "image class"], splits: int = 10) -> tuple[float, float]:
    """Return the mean and the standard deviation of the Inception Score over splits (Salimans et al. 2016).

    The score is exp(E KL(p(y|x) ‖ p(y))), for each of `splits` equal runs of images; a remainder is dropped.
    Probabilities are `[image, class]`, and the order of images must not depend on the class.

    Raises:
      ValueError: There are fewer images than splits.
    """
    size = len(probabilities) // splits
    if not size:
        raise ValueError(f"{len(probabilities)} images are too few for {splits} splits")
    runs = np.asarray(probabilities[: size * splits], np.float64).reshape(splits, size, -1)
    marginal = _times_log(runs.mean(axis=1)).sum(axis=1)
    scores = np.exp(_times_log(runs).sum(axis=2).mean(axis=1) - marginal)
    return float(scores.mean()), float(scores.std())


def cosine_similarities(features: Features, other: Features) -> Float[np.ndarray, " image"]:
    """Return the cosine similarities of rows `[image, feature]`, none of them zero, as float64 `[image]`."""
    first, second = (np.asarray(x, np.float64) for x in (features, other))
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.einsum("ij,ij->i", first, second) / lengths


def _times_log(p: np.ndarray) -> np.ndarray:
    return p * np.log(np.maximum(p, 1e-300))
