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
from l2l_jax.report.labels import families, label
from l2l_jax.train.metric_writers import read_metrics

COLORS = {"retain": "#1b6e3c", "forget": "#a3242b", "general": "#555555"}

PITCH = 1.06
"""Distance of neighboring pictures in widths of a picture."""

EXAMPLES = 3
"""Images of each set that the report begins with."""


def save_grid(
    path: pathlib.Path, evaluation: Evaluation, inpainted: Mapping[str, Mapping[str, np.ndarray]]
) -> None:
    """Draw test images, their corrupted inputs and each model's reconstructions, one set below the other.

    Args:
      path: PNG file to write.
      evaluation: Holds the test images to show.
      inpainted: Their reconstructions by model, then by set.
    """
    sets = {name: shown for name, shown in evaluation.shown.items() if _in_all(name, inpainted)}
    columns = max(len(shown.labels) for shown in sets.values())
    height = (len(inpainted) + 2) * 0.84 + 0.4
    figure = Figure(figsize=(0.9 * columns + 1.2, height * len(sets)), dpi=120)
    for part, name in zip(figure.subfigures(len(sets), 1, squeeze=False)[:, 0], sets, strict=True):
        rows = _rows(evaluation, name, inpainted)
        axis = _empty_axis(part, columns, len(rows), top=0.92, bottom=0.02)
        for line, (row, images) in enumerate(rows.items()):
            _left_of(axis, line, row)
            for column, pixels in enumerate(images):
                _put(axis, column, line, pixels, evaluation.inpainter.value_range)
        for column, class_id in enumerate(sets[name].labels):
            _above(axis, column, label(evaluation.class_names[class_id], 11), color=COLORS[name])
        _left_of(axis, 0, name.upper(), far=True, color=COLORS[name], weight="bold")
    _save(figure, path)


def save_examples(
    path: pathlib.Path, evaluation: Evaluation, inpainted: Mapping[str, Mapping[str, np.ndarray]], name: str
) -> None:
    """Draw a few images of a set, large: a row for each image, a column for each model.

    Args:
      path: PNG file to write.
      evaluation: Holds the test images to show.
      inpainted: Their reconstructions by model, then by set.
      name: The set.
    """
    labels = evaluation.shown[name].labels
    firsts = [int(np.flatnonzero(labels == class_id)[0]) for class_id in np.unique(labels)]
    chosen = [firsts[i] for i in np.linspace(0, len(firsts) - 1, min(EXAMPLES, len(firsts))).astype(int)]
    columns = _rows(evaluation, name, inpainted)
    figure = Figure(figsize=(1.1 * len(columns) + 0.2, 1.1 * (len(chosen) + 0.4)), dpi=160)
    axis = _empty_axis(figure, len(columns), len(chosen), left=0.02, right=0.98, top=0.86, bottom=0.01)
    for column, (title, images) in enumerate(columns.items()):
        _above(axis, column, title)
        for line, index in enumerate(chosen):
            _put(axis, column, line, images[index], evaluation.inpainter.value_range)
    for line, index in enumerate(chosen):
        text = label(evaluation.class_names[labels[index]], 14)
        axis.text(
            -0.06, line * PITCH + 0.5, text, fontsize=9, va="center", ha="right", rotation=90,
            color=COLORS[name], family=families(),
        )  # fmt: skip
    _save(figure, path)


def save_methods(
    path: pathlib.Path, evaluation: Evaluation, inpainted: Mapping[str, Mapping[str, np.ndarray]]
) -> None:
    """Draw a column for each model and a row for each test image.

    Args:
      path: PNG file to write.
      evaluation: Holds the test images to show.
      inpainted: Their reconstructions by model, then by set.
    """
    names = ["image", "input", *inpainted]
    gaps = len(evaluation.shown) - 1  # an empty line between the sets
    total = sum(len(block.labels) for block in evaluation.shown.values()) + gaps
    figure = Figure(figsize=(0.62 * len(names) + 0.7, 0.62 * total + 1.1), dpi=150)
    axis = _empty_axis(figure, len(names), total)
    line = 0
    for name, shown in evaluation.shown.items():
        columns = _rows(evaluation, name, inpainted).values()
        middle = line + len(shown.labels) // 2
        _left_of(axis, middle, name.upper(), far=True, color=COLORS[name], weight="bold")
        for row, class_id in zip(zip(*columns, strict=True), shown.labels, strict=True):
            _left_of(axis, line, label(evaluation.class_names[class_id], 12), color=COLORS[name])
            for column, pixels in enumerate(row):
                _put(axis, column, line, pixels, evaluation.inpainter.value_range)
            line += 1
        line += 1
    for column, name in enumerate(names):
        _above(axis, column, name, rotation=30)
    _save(figure, path)


def _rows(
    evaluation: Evaluation, name: str, inpainted: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Return the shown images of a set, their corrupted inputs and reconstructions, by title."""
    models = {model: sets[name] for model, sets in inpainted.items()}
    return {"image": evaluation.shown[name].images, "input": evaluation.masked(name), **models}


def _in_all(name: str, inpainted: Mapping[str, Mapping[str, np.ndarray]]) -> bool:
    return all(name in sets for sets in inpainted.values())


def _save(figure: Figure, path: pathlib.Path) -> None:
    figure.savefig(path, bbox_inches="tight", metadata={"Software": None})


def _empty_axis(figure: FigureBase, columns: int, lines: int, **margins: float) -> Axes:
    """Return one pair of axes for all pictures of a grid; a pair for each takes four times as long."""
    axis = figure.subplots(gridspec_kw=margins)
    axis.axis("off")
    axis.set(xlim=(0, columns * PITCH), ylim=(lines * PITCH, 0), autoscale_on=False)
    return axis


def _put(axis: Axes, column: int, line: int, pixels: np.ndarray, value_range: tuple[float, float]) -> None:
    """Draw a picture in its cell of a grid."""
    left, top = column * PITCH, line * PITCH
    place = (left, left + 1, top + 1, top)
    axis.imshow(_displayed(pixels, value_range), interpolation="nearest", extent=place)


def _left_of(axis: Axes, line: int, text: str, *, far: bool = False, **style: Any) -> None:
    """Write at the left of a line of pictures."""
    axis.text(
        -1.2 if far else -0.25,
        line * PITCH + 0.5,
        text,
        fontsize=9,
        va="center",
        ha="right",
        family=families(),
        **style,
    )


def _above(axis: Axes, column: int, text: str, **style: Any) -> None:
    """Write above a column of pictures."""
    aligned = "left" if "rotation" in style else "center"
    axis.text(
        column * PITCH + 0.5, -0.12, text, fontsize=9, va="bottom", ha=aligned, family=families(), **style
    )


def _displayed(pixels: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    low, high = value_range
    return np.clip((pixels - low) / (high - low), 0, 1)


def save_curves(path: pathlib.Path, stages: Mapping[str, pathlib.Path]) -> None:
    """Draw losses over steps, one panel per phase.

    Args:
      path: PNG file to write.
      stages: Folders of `metrics.jsonl` by phase; empty if nothing was trained.
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
                axis.plot(steps, values, label=term, color=COLORS.get(term, "#333333"))
        axis.set(title=name, xlabel="step", yscale="log")
        axis.legend()
        axis.grid(alpha=0.3)
    figure.savefig(path, metadata={"Software": None})


def save_tradeoff(path: pathlib.Path, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw retain against forget quality, a point for each row.

    Quality is a distance and the accuracy if the rows have them, otherwise PSNR and MSE.

    Args:
      path: PNG file to write.
      rows: Figures by name of the row, then by set.
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
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right")  # type: ignore[call-overload]  # not in the stubs
    figure.savefig(path, metadata={"Software": None})
