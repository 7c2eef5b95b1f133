"""Metrics of reconstructions, per image and per set."""

from __future__ import annotations  # jaxtyping is not needed at run time

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from threadpoolctl import threadpool_limits

from l2l_jax.evals import statistics
from l2l_jax.evals.intervals import COSTLY_RESAMPLES, Interval, mean_interval, standard_interval

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Shaped, UInt8

    Images = Shaped[np.ndarray, "image height width channel"]
    Masks = Bool[np.ndarray, "image height width"] | Bool[np.ndarray, "height width"]
    PerImage = Float[np.ndarray, " image"]

WINDOW_SIGMA = 1.5
WINDOW_RADIUS = 5  # radius in pixels of the Gaussian window of SSIM, 11×11 as in Wang et al. 2004


class Metric(NamedTuple):
    """Heading and number format of a metric, and whether better reconstructions have higher values."""

    heading: str
    format: str
    better: Literal["higher", "lower"]


METRICS = {
    "psnr": Metric("PSNR (dB)", ".2f", "higher"),
    "ssim": Metric("SSIM", ".3f", "higher"),
    "mse": Metric("masked MSE", ".4f", "lower"),
    "fid": Metric("FID", ".2f", "lower"),
    "kid": Metric("KID", ".4f", "lower"),
    "inception_score": Metric("IS", ".2f", "higher"),
    "scene_score": Metric("IS (Places ResNet-50)", ".2f", "higher"),
    "clip_cosine": Metric("CLIP", ".3f", "higher"),
    "classifier_distance": Metric("Fréchet distance (small classifier)", ".2f", "lower"),
    "classifier_score": Metric("Inception Score (small classifier)", ".2f", "higher"),
    "accuracy": Metric("accuracy", ".3f", "higher"),
}
"""The metrics in tables, in order."""

# Fréchet and kernel distances by the network that computes the features
DISTANCES = {"inception": ("fid", "kid"), "classifier": ("classifier_distance", None)}
# Inception Scores by the network that computes the class probabilities
SCORES = {"inception": "inception_score", "resnet50": "scene_score", "classifier": "classifier_score"}
# Cosine similarities of reconstruction and original by the network that computes the features
COSINES = {"clip": "clip_cosine"}
SPLITS = 10  # number of splits of a set for the Inception Score, which needs at least this many images
BY_CLASS = ("mse", "accuracy")  # metrics reported for each class
# Number of features from which a Fréchet distance takes seconds, and number of resamples of its interval
WIDE, WIDE_RESAMPLES = 256, 10
# Number of images with which the Fréchet Inception Distance is usually computed (Heusel et al. 2017)
RECOMMENDED = 10_000
# Returns an array `[image, …]` of a whole set by name, such as "mse" or "clip/features"; None: not observed
Read = Callable[[str], np.ndarray | None]


def metrics_of(network: str) -> list[str]:
    """Return the metrics that need a network, by its name in `DISTANCES`, `SCORES` and `COSINES`."""
    names = (*DISTANCES.get(network, ()), SCORES.get(network), COSINES.get(network))
    return [name for name in names if name is not None]


def masked_mse(originals: Images, inpainted: Images, masks: Masks) -> PerImage:
    """Return the mean squared error inside the mask of each image, float64 `[image]`.

    Images are `[image, height, width, channel]`; masks bool `[image, height, width]`, or `[height, width]`
    for all.
    """
    error = np.square(np.asarray(inpainted, np.float64) - np.asarray(originals, np.float64)).mean(axis=-1)
    return (error * masks).sum(axis=(1, 2)) / np.broadcast_to(masks, error.shape).sum(axis=(1, 2))


def psnr(mse: PerImage, value_range: tuple[float, float]) -> PerImage:
    """Return the peak signal-to-noise ratio in dB of mean squared errors, which are clipped to 1e-10."""
    peak = value_range[1] - value_range[0]
    return 10 * np.log10(peak**2 / np.maximum(mse, 1e-10))


def ssim(originals: Images, inpainted: Images, value_range: tuple[float, float]) -> PerImage:
    """Return the structural similarity of whole images (Wang et al. 2004), float32 `[image]`.

    It is averaged over channels and over all windows inside the image.
    """
    if min(originals.shape[1:3]) < 2 * WINDOW_RADIUS + 1:
        raise ValueError(f"SSIM needs images of at least 11×11 pixels, not {originals.shape[1:3]}")
    count = len(originals)
    padding = [(0, (1 << (count - 1).bit_length()) - count)] + [(0, 0)] * 3  # to compile for few shapes
    low, high = value_range
    unit = [np.pad((np.asarray(x, np.float32) - low) / (high - low), padding) for x in (originals, inpainted)]
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


def to_uint8(images: Float[np.ndarray, ...], value_range: tuple[float, float]) -> UInt8[np.ndarray, ...]:
    """Convert images to uint8, clipped and rounded, as for files and as inputs of the networks."""
    low, high = value_range
    return np.rint((np.clip(images, low, high) - low) * np.float32(255 / (high - low))).astype(np.uint8)


def observe_pairs(
    originals: Images, inpainted: Images, masks: Masks, value_range: tuple[float, float]
) -> dict[str, PerImage]:
    """Return "psnr" and "mse" of the masked regions and, unless the images are too small, "ssim".

    See `masked_mse` and `ssim` for the shapes.
    """
    mse = masked_mse(originals, inpainted, masks)
    observed = {"mse": mse, "psnr": psnr(mse, value_range)}
    if min(originals.shape[1:3]) > 2 * WINDOW_RADIUS:
        observed["ssim"] = ssim(originals, inpainted, value_range)
    return observed


def balanced_accuracy(correct: Shaped[np.ndarray, " image"], labels: Shaped[np.ndarray, " image"]) -> float:
    """Return the mean over classes of the share of correctly classified images."""
    return float(np.mean([correct[labels == label].mean() for label in np.unique(labels)]))


class SetMetrics(NamedTuple):
    """Metrics of a set of images."""

    # By the names in `METRICS`; "balanced_accuracy"; and `NAME_std` for the spread over subsets (KID) or
    # splits (Inception Score)
    metrics: dict[str, float]
    # Bounds of 95% intervals by the same names, see `l2l_jax.evals.intervals`
    intervals: dict[str, tuple[float, float]]
    missing: dict[str, str]  # reasons why other metrics are not available, by name
    unreliable: dict[str, str]  # reasons why available metrics need more images, by name
    classes: dict[str, dict[str, float]]  # "count", "mse" and "accuracy" by class name

    def _add(self, name: str, interval: Interval) -> None:
        self.metrics[name] = interval.value
        if np.isfinite([interval.low, interval.high]).all():
            self.intervals[name] = (interval.low, interval.high)


def measure(read: Read, read_original: Read, class_names: Sequence[str] = ()) -> SetMetrics:
    """Compute the metrics of a set of reconstructions.

    These are means over images of PSNR and MSE in the masked region, of SSIM of whole images, of CLIP cosine
    similarities of reconstruction and original, and of the accuracy of a classifier of the masked region;
    Fréchet and kernel distance of originals and reconstructions; Inception Scores of the reconstructions.

    `read` and `read_original` return the observations of reconstructions and of originals; `class_names` are
    indexed by the class IDs in `read("labels")`.
    """
    metrics = SetMetrics({}, {}, {}, {}, {})
    per_image = {name: values for name in ("psnr", "ssim", "mse") if (values := read(name)) is not None}
    labels, classes = read("labels"), read("masked/classes")
    if classes is not None and labels is not None:
        per_image["accuracy"] = classes == labels
        metrics.metrics["balanced_accuracy"] = balanced_accuracy(per_image["accuracy"], labels)
    for label in () if labels is None else np.unique(labels):
        row = {name: float(x[labels == label].mean()) for name, x in per_image.items() if name in BY_CLASS}
        metrics.classes[str(class_names[label])] = {"count": int((labels == label).sum()), **row}
    for network, name in COSINES.items():
        features, others = read(f"{network}/features"), read_original(f"{network}/features")
        if features is not None and others is not None and len(features) == len(others):
            per_image[name] = statistics.cosine_similarities(features, others)
    for name, values in per_image.items():
        metrics._add(name, mean_interval(values))
    for network, (frechet, kernel) in DISTANCES.items():
        features, others = read(f"{network}/features"), read_original(f"{network}/features")
        if features is not None and others is not None:
            _add_distances(metrics, frechet, kernel, features, others)
    for network, name in SCORES.items():
        _add_score(metrics, name, read(f"{network}/probabilities"))
    return metrics


def measure_originals(read_original: Read, labels: Shaped[np.ndarray, " image"] | None) -> dict[str, float]:
    """Compute Inception Scores of originals, and the accuracy of the classifier of the masked region."""
    metrics = SetMetrics({}, {}, {}, {}, {})
    for network, name in SCORES.items():
        _add_score(metrics, name, read_original(f"{network}/probabilities"))
    classes = read_original("masked/classes")
    if classes is not None and labels is not None:
        metrics.metrics["accuracy"] = float((classes == labels).mean())
        metrics.metrics["balanced_accuracy"] = balanced_accuracy(classes == labels, labels)
    return metrics.metrics


def _add_distances(
    metrics: SetMetrics, frechet: str, kernel: str | None, features: np.ndarray, others: np.ndarray
) -> None:
    count, width = min(len(features), len(others)), features.shape[1]
    if count < 2:
        metrics.missing.update(dict.fromkeys(filter(None, (frechet, kernel)), "it needs two images"))
        return
    metrics.metrics[frechet] = statistics.frechet_distance(features, others)
    too_few = f"{count:,} images are too few"
    if count <= width:  # a singular covariance
        usual = f"; {RECOMMENDED:,} are usual" if frechet == "fid" else ""
        metrics.unreliable[frechet] = f"{too_few}: it needs more than its {width:,} features{usual}"
    elif len(features) == len(others):
        # With wide features a distance takes seconds; with narrow ones, a second thread does not pay off.
        resamples, threads = (WIDE_RESAMPLES, None) if width >= WIDE else (COSTLY_RESAMPLES, 1)

        def distance(chosen: np.ndarray) -> float:
            return statistics.frechet_distance(features[chosen], others[chosen])

        with threadpool_limits(threads):
            metrics._add(frechet, standard_interval(distance, count, resamples=resamples, least=0.0))
    if kernel is not None:
        metrics.metrics[kernel], spread = statistics.kernel_distance(features, others)
        if count > statistics.KERNEL_SUBSET:
            metrics.metrics[f"{kernel}_std"] = spread
        else:  # all subsets would be the whole set
            least = f"its spread over subsets needs more than {statistics.KERNEL_SUBSET:,}"
            metrics.unreliable[kernel] = f"{too_few}: {least}"


def _add_score(metrics: SetMetrics, name: str, probabilities: np.ndarray | None) -> None:
    if probabilities is None:
        return
    if len(probabilities) < SPLITS:
        metrics.missing[name] = f"it needs {SPLITS} images, and there are {len(probabilities)}"
        return
    metrics.metrics[name], metrics.metrics[f"{name}_std"] = statistics.inception_score(probabilities, SPLITS)
