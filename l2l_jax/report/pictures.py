"""Pictures of a run, drawn with matplotlib."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase

from l2l_jax.evals.evaluator import Evaluation
from l2l_jax.evals.metrics import METRICS
from l2l_jax.train.metric_writers import read_metrics

COLOURS = {"retain": "#1b6e3c", "forget": "#a3242b", "general": "#555555"}

PITCH = 1.06
"""From one picture to the next, in widths of a picture."""


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
    height = (len(restored) + 2) * 0.84 + 0.4
    figure = Figure(figsize=(0.9 * count + 1.2, height * len(sets)), dpi=120)
    for part, of in zip(np.atleast_1d(figure.subfigures(len(sets), 1)), sets, strict=True):
        shown = sets[of]
        rows = {"image": shown.images, "seen": evaluation.masked(of)}
        rows |= {name: of_sets[of] for name, of_sets in restored.items()}
        axis = _empty_axis(part, count, len(rows), top=0.92, bottom=0.02)
        for line, (name, images) in enumerate(rows.items()):
            _left_of(axis, line, name)
            for column, pixels in enumerate(images):
                _put(axis, column, line, pixels, evaluation.inpainter.value_range)
        for column, label in enumerate(shown.labels):
            _above(axis, column, evaluation.class_names[label], color=COLOURS[of])
        _left_of(axis, 0, of.upper(), far=True, color=COLOURS[of], weight="bold")
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
    axis = _empty_axis(figure, len(names), total)
    line = 0
    for of, (indices, images, class_ids) in evaluation.shown.items():
        columns = [images, evaluation.masked(of), *(sets[of] for sets in restored.values())]
        _left_of(axis, line + len(indices) // 2, of.upper(), far=True, color=COLOURS[of], weight="bold")
        for row, class_id in zip(zip(*columns, strict=True), class_ids, strict=True):
            _left_of(axis, line, evaluation.class_names[class_id], color=COLOURS[of])
            for column, pixels in enumerate(row):
                _put(axis, column, line, pixels, evaluation.inpainter.value_range)
            line += 1
        line += 1
    for column, name in enumerate(names):
        _above(axis, column, name, rotation=30)
    figure.savefig(path, bbox_inches="tight", metadata={"Software": None})


def _empty_axis(figure: FigureBase, columns: int, lines: int, **margins: float) -> Axes:
    """One pair of axes for all pictures of a grid: a pair for each takes four times as long to draw."""
    axis = figure.subplots(gridspec_kw=margins)
    axis.axis("off")
    axis.set(xlim=(0, columns * PITCH), ylim=(lines * PITCH, 0), autoscale_on=False)
    return axis


def _put(axis: Axes, column: int, line: int, pixels: np.ndarray, value_range: tuple[float, float]) -> None:
    """Draw a picture at its place in a grid."""
    left, top = column * PITCH, line * PITCH
    place = (left, left + 1, top + 1, top)
    axis.imshow(_displayed(pixels, value_range), interpolation="nearest", extent=place)


def _left_of(axis: Axes, line: int, text: str, *, far: bool = False, **style: Any) -> None:
    """Write at the left of a line of pictures."""
    axis.text(-1.2 if far else -0.25, line * PITCH + 0.5, text, fontsize=9, va="center", ha="right", **style)


def _above(axis: Axes, column: int, text: str, **style: Any) -> None:
    """Write above a column of pictures."""
    aligned = "left" if "rotation" in style else "center"
    axis.text(column * PITCH + 0.5, -0.12, text, fontsize=9, va="bottom", ha=aligned, **style)


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
        label = METRICS[figure_name].heading
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
