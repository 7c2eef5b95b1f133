"""The figures of the paper's tables: what is observed of each image, and what a set comes to."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from l2l_jax.evals import metrics
from l2l_jax.evals.features.base import FeatureNetwork
from l2l_jax.evals.features.digits import MaskClassifier
from l2l_jax.evals.intervals import mean_interval, standard_interval
from l2l_jax.evals.statistics import (
    cosine_similarities,
    frechet_distance,
    gaussian_statistics,
    inception_score,
    kernel_distance,
)


class FigureInfo(NamedTuple):
    """How a figure is shown.

    Attributes:
      heading: what it is called.
      format: of the number.
      better: which restorations are better: those with "higher" or with "lower" figures.
    """

    heading: str
    format: str
    better: Literal["higher", "lower"]


FIGURES = {
    "psnr": FigureInfo("PSNR (dB)", ".2f", "higher"),
    "ssim": FigureInfo("SSIM", ".3f", "higher"),
    "mse": FigureInfo("hole MSE", ".4f", "lower"),
    "fid": FigureInfo("FID", ".2f", "lower"),
    "kid": FigureInfo("KID", ".4f", "lower"),
    "inception_score": FigureInfo("IS", ".2f", "higher"),
    "scene_score": FigureInfo("IS (Places ResNet-50)", ".2f", "higher"),
    "clip_cosine": FigureInfo("CLIP", ".3f", "higher"),
    "classifier_distance": FigureInfo("Fréchet distance (digit classifier)", ".2f", "lower"),
    "classifier_score": FigureInfo("Inception Score (digit classifier)", ".2f", "higher"),
    "accuracy": FigureInfo("accuracy", ".3f", "higher"),
}
"""All figures, in the order in which they are shown."""

DISTANCES = {"inception": ("fid", "kid"), "classifier": ("classifier_distance", None)}
"""Fréchet and kernel distance by the network whose features are compared."""

SCORES = {
    "inception": "inception_score",
    "resnet50": "scene_score",
    "classifier": "classifier_score",
}
"""Inception Scores by the network whose classes are meant."""

COSINES = {"clip": "clip_cosine"}
"""Cosines of restored and original by the network whose features are compared."""

SPLITS = 10
"""Parts of a set for the Inception Score: it needs as many images."""

WIDE = 256
"""Features from which a Fréchet distance takes seconds, and its interval comes of few resamples."""

WIDE_RESAMPLES = 10

Observed = dict[str, np.ndarray]
"""What is kept of some images, by name: arrays that start with the image axis."""

Read = Callable[[str], np.ndarray | None]
"""An array of what was observed of a whole set, by name, in the order of its images; None: not observed."""


def figures_of(network: str) -> list[str]:
    """The figures that a network, by its name in `DISTANCES`, `SCORES` and `COSINES`, is needed for."""
    names = (*DISTANCES.get(network, ()), SCORES.get(network), COSINES.get(network))
    return [name for name in names if name is not None]


def observe_images(networks: Mapping[str, FeatureNetwork], images: np.ndarray) -> Observed:
    """What networks say of images, by "network/output".

    Args:
      networks: feature networks by name.
      images: uint8 `[image, height, width, channel]`.
    """
    outputs = {name: network(images) for name, network in networks.items()}
    return {f"{name}/{output}": values for name, found in outputs.items() for output, values in found.items()}


def observe_classes(classifier: MaskClassifier | None, images: np.ndarray, labels: np.ndarray) -> Observed:
    """Whether the class of each image can be read from its mask, "correct"; nothing without a classifier.

    Args:
      classifier: reads them.
      images: uint8 `[image, height, width, channel]`.
      labels: class ids `[image]`.
    """
    return {} if classifier is None else {"correct": classifier.correct(images, labels)}


def observe_pairs(
    originals: np.ndarray, restored: np.ndarray, masks: np.ndarray, value_range: tuple[float, float]
) -> Observed:
    """What is kept of pairs of images without any network: "psnr", "mse" and, unless they are small, "ssim".

    Args:
      originals, restored: `[image, height, width, channel]` in `value_range`.
      masks: bool `[image, height, width]`.
      value_range: least and greatest pixel value.
    """
    mse = metrics.masked_mse(originals, restored, masks)
    observed = {"mse": mse, "psnr": metrics.psnr(mse, value_range)}
    if min(originals.shape[1:3]) > 2 * metrics.WINDOW_RADIUS:
        observed["ssim"] = metrics.ssim(originals, restored, value_range)
    return observed


class SetFigures(NamedTuple):
    """The figures of a set.

    Attributes:
      figures: by the names in `FIGURES`, and `NAME_std` for the spread over subsets (KID) or splits (IS).
      intervals: ends of 95 % intervals by the same names, see `l2l_jax.evals.intervals`.
      missing: why other figures are not available, by name.
    """

    figures: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    missing: dict[str, str]


class _Collector:
    def __init__(self) -> None:
        self.result = SetFigures({}, {}, {})

    def add(self, name, interval) -> None:
        self.result.figures[name] = interval.value
        if np.isfinite([interval.low, interval.high]).all():
            self.result.intervals[name] = (interval.low, interval.high)


def measure(read: Read, read_original: Read) -> SetFigures:
    """The figures of a set of restorations.

    Means over images of PSNR and of the MSE inside the mask, of SSIM of whole images, of CLIP cosines of
    restored and original, and of how often the class can be read from the restored mask alone; Fréchet and
    kernel distance between originals and restorations; Inception Scores of the restorations.

    Args:
      read: what was observed of the restorations.
      read_original: what was observed of the originals.
    """
    found = _Collector()
    for name, key in (("psnr", "psnr"), ("ssim", "ssim"), ("mse", "mse"), ("accuracy", "correct")):
        values = read(key)
        if values is not None:
            found.add(name, mean_interval(values))
    for network, names in DISTANCES.items():
        _distances(found, names, read(f"{network}/features"), read_original(f"{network}/features"))
    for network, name in SCORES.items():
        _score(found, name, read(f"{network}/probabilities"))
    for network, name in COSINES.items():
        pair = read(f"{network}/features"), read_original(f"{network}/features")
        if pair[0] is not None and pair[1] is not None and len(pair[0]) == len(pair[1]):
            found.add(name, mean_interval(cosine_similarities(*pair)))
    return found.result


def measure_real(read_original: Read) -> dict[str, float]:
    """What the originals themselves reach: Inception Scores, and the accuracy of reading their masks."""
    found = _Collector()
    for network, name in SCORES.items():
        _score(found, name, read_original(f"{network}/probabilities"))
    correct = read_original("correct")
    if correct is not None:
        found.result.figures["accuracy"] = float(correct.mean())
    return found.result.figures


def _distances(found, names, restored, originals) -> None:
    if restored is None or originals is None:
        return
    frechet, kernel = names
    if min(len(restored), len(originals)) < 2:
        for name in filter(None, names):
            found.result.missing[name] = "it needs two images"
        return
    distance = frechet_distance(gaussian_statistics(restored), gaussian_statistics(originals))
    found.result.figures[frechet] = distance
    count, width = restored.shape
    if count == len(originals) and count > width:  # fewer images make a singular covariance

        def statistic(chosen):
            return frechet_distance(
                gaussian_statistics(restored[chosen]), gaussian_statistics(originals[chosen])
            )

        wide = width >= WIDE
        how = {"resamples": WIDE_RESAMPLES} if wide else {}
        with threadpool_limits(
            None if wide else 1
        ):  # small matrices: a second thread costs more than it saves
            found.add(frechet, standard_interval(statistic, count, least=0.0, **how))
    if kernel is not None:
        mean, spread = kernel_distance(restored, originals)
        found.result.figures.update({kernel: mean, f"{kernel}_std": spread})


def _score(found, name, probabilities) -> None:
    if probabilities is None:
        return
    if len(probabilities) < SPLITS:
        found.result.missing[name] = f"it needs {SPLITS} images, and there are {len(probabilities)}"
        return
    mean, spread = inception_score(probabilities, SPLITS)
    found.result.figures.update({name: mean, f"{name}_std": spread})
