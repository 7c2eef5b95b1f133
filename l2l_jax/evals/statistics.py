"""Distances between sets of features and scores of sets of images, in float64, from running sums.

A set is added block by block, in any order, by any number of processes; what is kept does not grow with it.
"""

import numpy as np
import scipy.linalg
from scipy.linalg import blas, lapack

from l2l_jax.utils.multihost import each_process


class GaussianStatistics:
    """Mean and covariance of features that are added block by block.

    Kept are the number of rows, their mean and the sum of outer products about it, joined by the formulas of
    Chan, Golub, LeVeque (1983): no digits are lost to a mean that is far from 0. For 2048 features that is
    34 MB, of which only the blocks' own size is needed in addition.

    Args:
      features: number of features.

    Attributes:
      count: rows added so far.
      mean: float64 `[feature]`.
    """

    def __init__(self, features: int):
        self.count = 0
        self.mean = np.zeros(features)
        self._scatter = np.zeros((features, features), order="F")  # of which the upper triangle is kept

    def add(self, features: np.ndarray) -> None:
        """Add rows `[image, feature]`.

        Raises:
          ValueError: another number of features.
        """
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"features must be [image, {len(self.mean)}], not {features.shape}")
        if not len(features):
            return
        rows = np.empty((len(features) + 1, len(self.mean)))
        rows[:-1] = features
        mean = rows[:-1].mean(axis=0)
        rows[:-1] -= mean[None]
        rows[-1] = self._join(len(features), mean)
        self._scatter = blas.dsyrk(1.0, rows.T, beta=1.0, c=self._scatter, overwrite_c=1)

    def merge(self, other: "GaussianStatistics") -> None:
        """Add all rows that `other` has seen.

        Raises:
          ValueError: another number of features.
        """
        if len(other.mean) != len(self.mean):
            raise ValueError(f"{len(self.mean)} features cannot be joined with {len(other.mean)}")
        self._add_scatter(other.count, other.mean, other._scatter)

    def gather(self) -> "GaussianStatistics":
        """The statistics of the rows of all processes, the same in each; called by all of them."""
        total = GaussianStatistics(len(self.mean))
        counts = [int(count[0]) for count in each_process(np.array([self.count]))]
        means, scatters = each_process(self.mean), each_process(self._scatter)
        for count, mean, scatter in zip(counts, means, scatters, strict=True):
            total._add_scatter(count, mean, scatter)
        return total

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance, float64 `[feature, feature]`.

        Raises:
          ValueError: there are fewer than two rows.
        """
        if self.count < 2:
            raise ValueError("a covariance needs at least two images in each set")
        covariance = self._scatter / (self.count - 1)
        for row in range(1, len(covariance)):  # what lies below the diagonal, without another copy
            covariance[row, :row] = covariance[:row, row]
        return covariance

    def _add_scatter(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        if count:
            shift = self._join(count, mean)
            self._scatter += scatter
            self._scatter = blas.dsyr(1.0, shift, a=self._scatter, overwrite_a=1)

    def _join(self, count: int, mean: np.ndarray) -> np.ndarray:
        """Take in number and mean of more rows; the outer product of the result belongs to the scatter."""
        total = self.count + count
        difference = mean - self.mean
        shift = difference * np.sqrt(self.count * count / total)
        self.mean = self.mean + difference * (count / total)
        self.count = total
        return shift


def frechet_distance(first: GaussianStatistics, second: GaussianStatistics) -> float:
    """Fréchet distance of the Gaussians fitted to two sets of features (Heusel et al. 2017).

    ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½), with unbiased covariances. With Σ₁ = LLᵀ the trace of the root is
    the sum of the roots of the eigenvalues of LᵀΣ₂L, which also holds for singular covariances.

    Raises:
      ValueError: fewer than two images in a set, or different numbers of features.
    """
    if len(first.mean) != len(second.mean):
        raise ValueError(f"{len(first.mean)} and {len(second.mean)} features cannot be compared")
    factor, product = first.covariance, second.covariance
    distance = np.square(first.mean - second.mean).sum() + np.trace(factor) + np.trace(product)
    # Everything is done in the memory of the two covariances: 67 MB for 2048 features.
    factor, order, rank, _ = lapack.dpstrf(factor, lower=1, overwrite_a=1)
    factor[:, rank:] = 0  # what was left of a singular covariance
    order -= 1
    for column in range(len(product)):
        product[:, column] = product[order, column]
    for row in range(len(product)):
        product[row] = product[row, order]
    product = blas.dtrmm(1.0, factor, product, lower=1, trans_a=1, overwrite_b=1)
    product = blas.dtrmm(1.0, factor, product, side=1, lower=1, overwrite_b=1)
    eigenvalues = scipy.linalg.eigvalsh(product, overwrite_a=True, check_finite=False)
    return float(distance - 2 * np.sqrt(np.maximum(eigenvalues, 0)).sum())


def kernel_distance(
    features: np.ndarray, other: np.ndarray, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Kernel Inception Distance (Bińkowski et al. 2018): its mean and standard deviation over subsets.

    Args:
      features, other: `[image, feature]`.
      subsets: how many pairs of subsets are drawn, each without replacement.
      subset_size: images in a subset, at most; all of the smaller set if it has fewer.
      seed: of the drawing.

    Raises:
      ValueError: fewer than two images in a set, or different numbers of features.
    """
    size = min(len(features), len(other), subset_size)
    rng = np.random.default_rng(seed)
    rows = [
        np.stack([rng.permutation(len(rows))[:size] for _ in range(subsets)]) for rows in (features, other)
    ]
    values = squared_discrepancies(features, other, *rows)
    return float(values.mean()), float(values.std())


BLOCK = 512
"""Rows of features, or of a kernel matrix, that are held in float64 at a time."""


def squared_discrepancies(
    features: np.ndarray, other: np.ndarray, rows: np.ndarray, other_rows: np.ndarray
) -> np.ndarray:
    """Unbiased squared maximum mean discrepancies between subsets, `[subset]`.

    The kernel is (x·y / features + 1)³. Every entry of the kernel matrices is computed once, whatever the
    number of subsets that it is part of.

    Args:
      features, other: `[image, feature]`.
      rows, other_rows: the subsets `[subset, image of the subset]`, as row numbers of `features` and `other`.

    Raises:
      ValueError: subsets of fewer than two images, or different numbers of features.
    """
    if features.ndim != 2 or other.ndim != 2 or features.shape[1] != other.shape[1]:
        raise ValueError(f"features must be [image, feature], not {features.shape} and {other.shape}")
    size = rows.shape[1]
    if size < 2:
        raise ValueError("a kernel distance needs at least two images in each set")
    sets = (np.asarray(features, np.float64), _members(rows, len(features)))
    others = (np.asarray(other, np.float64), _members(other_rows, len(other)))
    within = sum(_kernel_sums(*one, *one) - one[1] @ _kernel_diagonal(one[0]) for one in (sets, others))
    return within / (size * (size - 1)) - 2 * _kernel_sums(*sets, *others) / size**2


def _members(rows: np.ndarray, count: int) -> np.ndarray:
    """How often each of `count` rows is in each subset, `[subset, row]`."""
    return np.stack([np.bincount(subset, minlength=count) for subset in rows]).astype(np.float64)


def _kernel_diagonal(x: np.ndarray) -> np.ndarray:
    return (np.einsum("ij,ij->i", x, x) / x.shape[1] + 1) ** 3


def _kernel_sums(x: np.ndarray, in_x: np.ndarray, y: np.ndarray, in_y: np.ndarray) -> np.ndarray:
    """Sum of the kernel over all pairs of a subset of `x` and the same subset of `y`, `[subset]`."""
    sums = np.zeros(len(in_x))
    for start in range(0, len(x), BLOCK):
        block = slice(start, start + BLOCK)
        kernel = x[block] @ y.T
        kernel /= x.shape[1]
        kernel += 1
        kernel = kernel * kernel * kernel
        sums += np.einsum("sj,sj->s", in_x[:, block] @ kernel, in_y)
    return sums


class ScoreStatistics:
    """The Inception Score (Salimans et al. 2016) of class probabilities that are added block by block.

    exp(E KL(p(y|x) ‖ p(y))) of each of `splits` equal runs of images; a remainder is dropped.

    Args:
      images: how many images there are, which tells where a run ends.
      classes: number of classes.
      splits: into how many runs the images are split.

    Raises:
      ValueError: fewer images than splits.
    """

    def __init__(self, images: int, classes: int, splits: int = 10):
        self._size = images // splits
        if not self._size:
            raise ValueError(f"{images} images do not make {splits} splits")
        self._counts = np.zeros(splits)
        self._sums = np.zeros((splits, classes))
        self._negative_entropies = np.zeros(splits)

    def add(self, places: np.ndarray, probabilities: np.ndarray) -> None:
        """Add images.

        Args:
          places: their numbers in the set `[image]`, from 0; an order that does not depend on the class.
          probabilities: `[image, class]`.
        """
        probabilities = np.asarray(probabilities, np.float64)
        runs = np.asarray(places) // self._size
        for run in np.unique(runs[runs < len(self._counts)]):
            part = probabilities[runs == run]
            self._counts[run] += len(part)
            self._sums[run] += part.sum(axis=0)
            self._negative_entropies[run] += _times_log(part).sum()

    def merge(self, other: "ScoreStatistics") -> None:
        """Add all images that `other`, of the same set, has seen."""
        self._join(other._counts, other._sums, other._negative_entropies)

    def gather(self) -> "ScoreStatistics":
        """The statistics of the images of all processes, the same in each; called by all of them."""
        splits, classes = self._sums.shape
        total = ScoreStatistics(self._size * splits, classes, splits)
        own = (self._counts, self._sums, self._negative_entropies)
        for arrays in zip(*map(each_process, own), strict=True):
            total._join(*arrays)
        return total

    def _join(self, counts: np.ndarray, sums: np.ndarray, negative_entropies: np.ndarray) -> None:
        self._counts += counts
        self._sums += sums
        self._negative_entropies += negative_entropies

    def score(self) -> tuple[float, float]:
        """Mean and standard deviation over the runs, of the images added so far.

        Raises:
          ValueError: a run without an image.
        """
        if not self._counts.all():
            raise ValueError("an Inception Score needs images in every split")
        means = self._sums / self._counts[:, None]
        scores = np.exp(self._negative_entropies / self._counts - _times_log(means).sum(axis=1))
        return float(scores.mean()), float(scores.std())


def inception_score(probabilities: np.ndarray, splits: int = 10) -> tuple[float, float]:
    """Mean and standard deviation of the Inception Score of a whole set, see `ScoreStatistics`.

    Args:
      probabilities: `[image, class]`, in an order that does not depend on the class.
      splits: into how many runs the images are split.
    """
    statistics = ScoreStatistics(*probabilities.shape, splits)
    statistics.add(np.arange(len(probabilities)), probabilities)
    return statistics.score()


def gaussian_statistics(features: np.ndarray) -> GaussianStatistics:
    """The statistics of a whole set of features `[image, feature]`."""
    statistics = GaussianStatistics(features.shape[1])
    for start in range(0, len(features), BLOCK):
        statistics.add(features[start : start + BLOCK])
    return statistics


def cosine_similarities(features: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Cosines of the angles between rows, float64 `[image]`: restored against original, say.

    Args:
      features, other: `[image, feature]`, no row all zero.
    """
    first, second = (np.asarray(x, np.float64) for x in (features, other))
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.einsum("ij,ij->i", first, second) / lengths


def _times_log(p: np.ndarray) -> np.ndarray:
    return p * np.log(np.maximum(p, 1e-300))
