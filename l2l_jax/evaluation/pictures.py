"""Pictures of a run, drawn with matplotlib."""

import itertools
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from l2l_jax.evaluation.evaluate import Evaluation
from l2l_jax.evaluation.figures import FIGURES
from l2l_jax.training.metric_writers import read_metrics

COLOURS = {"retain": "#1b6e3c", "forget": "#a3242b"}


def save_grid(
    path: pathlib.Path,
    evaluation: Evaluation,
    restored: Mapping[str, Mapping[str, np.ndarray]],
    *,
    methods_across: bool = False,
) -> None:
    """A grid of test images, what a model saw of them, and the restorations of each model.

    Args:
      path: PNG file to write.
      evaluation: holds the test images to show.
      restored: their restorations by model, then by set.
      methods_across: a column for each model and a row for each image, instead of the reverse.
    """
    names = ["image", "seen", *restored]
    gaps = len(evaluation.shown) - 1  # an empty line between the sets
    total = sum(len(block.labels) for block in evaluation.shown.values()) + gaps
    shape, size = (len(names), total), (0.62 * total + 1.1, 0.62 * len(names) + 0.7)
    figure = Figure(figsize=size[::-1] if methods_across else size, dpi=150)
    axes = figure.subplots(*(shape[::-1] if methods_across else shape), squeeze=False)
    axes = axes.T if methods_across else axes
    for axis in axes.flat:
        axis.axis("off")
    offset = 0
    for of, (indices, images, class_ids) in evaluation.shown.items():
        rows = [images, evaluation.seen(of), *(sets[of] for sets in restored.values())]
        labels = [evaluation.class_names[class_id] for class_id in class_ids]
        part = axes[:, offset : offset + len(indices)]
        for axis, pixels in zip(part.flat, itertools.chain(*rows), strict=True):
            axis.imshow(_displayed(pixels, evaluation.restorer.value_range))
        for axis, label in zip(part[0], labels, strict=True):
            _beside(axis, label, above=not methods_across, color=COLOURS[of])
        middle = part[0, len(indices) // 2]
        _beside(middle, of.upper(), above=not methods_across, far=True, color=COLOURS[of], weight="bold")
        offset += len(indices) + 1
    for axis, name in zip(axes[:, 0], names, strict=True):
        _beside(axis, name, above=methods_across, rotation=30 if methods_across else 0)
    figure.savefig(path, bbox_inches="tight", metadata={"Software": None})


def _beside(axis: Axes, text: str, *, above: bool, far: bool = False, **style: Any) -> None:
    """Write next to a picture: above it, or at its left."""
    distance = 1.2 if far else 0.25
    if above:
        place = dict(x=0.5, y=1 + distance / 2, va="bottom", ha="left" if "rotation" in style else "center")
    else:
        place = dict(x=-distance, y=0.5, va="center", ha="right")
    axis.text(s=text, fontsize=9, transform=axis.transAxes, **place, **style)


def _displayed(pixels: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    low, high = value_range
    return np.clip((pixels - low) / (high - low), 0, 1)


def save_curves(path: pathlib.Path, stages: Mapping[str, pathlib.Path]) -> None:
    """Losses over steps, one panel per stage.

    Args:
      path: PNG file to write.
      stages: folders that hold `metrics.jsonl`, by name; none where nothing was trained.
    """
    figure = Figure(figsize=(5 * max(len(stages), 1), 3.2), dpi=120, layout="constrained")
    if not stages:
        figure.text(0.5, 0.5, "Nothing was trained in this workdir.", ha="center")
    for number, (name, folder) in enumerate(stages.items(), start=1):
        axis = figure.add_subplot(1, len(stages), number)
        logged = read_metrics(folder)
        for term in ("loss", "retain", "forget"):
            steps = [row["step"] for row in logged if term in row]
            if steps:
                values = [row[term] for row in logged if term in row]
                axis.plot(steps, values, label=term, color=COLOURS.get(term, "#333333"))
        axis.set(title=name, xlabel="step", yscale="log")
        axis.legend()
        axis.grid(alpha=0.3)
    figure.savefig(path, metadata={"Software": None})


def save_tradeoff(path: pathlib.Path, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Retain against forget quality, a point for each row: a distance and accuracy, or else PSNR and MSE.

    Args:
      path: PNG file to write.
      rows: figures by name of the row, then by set.
    """
    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    known = rows["original"]["retain"]
    distance = next((name for name in ("fid", "classifier_distance") if name in known), "psnr")
    for number, figure_name in enumerate((distance, "accuracy" if "accuracy" in known else "mse"), 1):
        label = FIGURES[figure_name].heading
        axis = figure.add_subplot(1, 2, number)
        for place, (name, row) in enumerate(rows.items()):
            point = (row["retain"][figure_name], row["forget"][figure_name])
            if name == "original":  # a ring, so that a point upon it is seen
                axis.plot(*point, "o", markersize=13, markerfacecolor="none", color="black", label=name)
            else:
                axis.plot(*point, "o", color=colormaps["viridis_r"](place / len(rows)), label=name)
        axis.set(xlabel=f"retain {label}", ylabel=f"forget {label}")
        axis.locator_params(nbins=6)
        axis.grid(alpha=0.3)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right")
    figure.savefig(path, metadata={"Software": None})
