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

COLOURS = {"retain": "#1b6e3c", "forget": "#a3242b", "general": "#555555"}


def save_grid(
    path: pathlib.Path, evaluation: Evaluation, restored: Mapping[str, Mapping[str, np.ndarray]]
) -> None:
    """Test images, what a model saw of them, and the restorations of each model, one set below the other.

    Args:
      path: PNG file to write.
      evaluation: holds the test images to show.
      restored: their restorations by model, then by set.
    """
    every = restored.values()
    sets = {of: shown for of, shown in evaluation.shown.items() if all(of in found for found in every)}
    count = max(len(shown.labels) for shown in sets.values())
    height = (len(restored) + 2) * 0.9 + 0.4
    figure = Figure(figsize=(0.9 * count + 1.2, height * len(sets)), dpi=120)
    for part, of in zip(np.atleast_1d(figure.subfigures(len(sets), 1)), sets, strict=True):
        shown = sets[of]
        rows = {"image": shown.images, "seen": evaluation.seen(of)}
        rows |= {name: of_sets[of] for name, of_sets in restored.items()}
        axes = part.subplots(
            len(rows), count, squeeze=False, gridspec_kw=dict(wspace=0.06, hspace=0.06, top=0.92, bottom=0.02)
        )
        for axis in axes.flat:
            axis.axis("off")
        for line, (name, images) in zip(axes, rows.items(), strict=True):
            _beside(line[0], name, above=False)
            for axis, pixels in zip(line, images, strict=False):
                axis.imshow(_displayed(pixels, evaluation.restorer.value_range), interpolation="nearest")
        for axis, label in zip(axes[0], shown.labels, strict=False):
            _beside(axis, evaluation.class_names[label], above=True, color=COLOURS[of])
        _beside(axes[0, 0], of.upper(), above=False, far=True, color=COLOURS[of], weight="bold")
    figure.savefig(path, bbox_inches="tight", metadata={"Software": None})


def save_methods(
    path: pathlib.Path, evaluation: Evaluation, restored: Mapping[str, Mapping[str, np.ndarray]]
) -> None:
    """A column for each model and a row for each test image.

    Args:
      path: PNG file to write.
      evaluation: holds the test images to show.
      restored: their restorations by model, then by set.
    """
    names = ["image", "seen", *restored]
    gaps = len(evaluation.shown) - 1  # an empty line between the sets
    total = sum(len(block.labels) for block in evaluation.shown.values()) + gaps
    figure = Figure(figsize=(0.62 * len(names) + 0.7, 0.62 * total + 1.1), dpi=150)
    axes = figure.subplots(total, len(names), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    offset = 0
    for of, (indices, images, class_ids) in evaluation.shown.items():
        columns = [images, evaluation.seen(of), *(sets[of] for sets in restored.values())]
        labels = [evaluation.class_names[class_id] for class_id in class_ids]
        part = axes[offset : offset + len(indices)]
        for axis, pixels in zip(part.T.flat, itertools.chain(*columns), strict=True):
            axis.imshow(_displayed(pixels, evaluation.restorer.value_range))
        for axis, label in zip(part[:, 0], labels, strict=True):
            _beside(axis, label, above=False, color=COLOURS[of])
        middle = part[len(indices) // 2, 0]
        _beside(middle, of.upper(), above=False, far=True, color=COLOURS[of], weight="bold")
        offset += len(indices) + 1
    for axis, name in zip(axes[0], names, strict=True):
        _beside(axis, name, above=True, rotation=30)
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
