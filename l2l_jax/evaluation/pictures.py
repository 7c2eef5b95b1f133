"""Pictures of a run, drawn with matplotlib."""

import pathlib
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from l2l_jax.evaluation.bench import Bench
from l2l_jax.training.metric_writers import read_metrics

COLOURS = {"retain": "#1b6e3c", "forget": "#a3242b"}


def save_restorations(
    path: pathlib.Path,
    bench: Bench,
    restored: Mapping[str, Mapping[str, np.ndarray]],
    *,
    per_class: int,
) -> None:
    """A grid: rows are the image, what the model saw, and each model's restoration.

    Args:
      path: PNG file to write.
      bench: holds the test images; the first `per_class` of each class are shown.
      restored: restorations by model, then by set.
      per_class: columns of each class.
    """
    names = ["image", "seen", *restored]
    columns = {of: _columns(images.labels, per_class) for of, images in bench.tests.items()}
    total = sum(len(chosen) for chosen in columns.values()) + len(columns) - 1
    figure = Figure(figsize=(0.62 * total + 1.1, 0.62 * len(names) + 0.7), dpi=150)
    axes = figure.subplots(len(names), total, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    offset = 0
    for of, images in bench.tests.items():
        seen = bench.restorer.seen(images.images)
        shown = [images.images, seen, *(sets[of] for sets in restored.values())]
        for column, index in enumerate(columns[of], start=offset):
            for row, pixels in enumerate(shown):
                axes[row, column].imshow(_displayed(pixels[index], bench.restorer.value_range))
            label = bench.class_names[images.labels[index]]
            axes[0, column].set_title(label, fontsize=9, color=COLOURS[of])
        _headline(figure, axes[0, offset : offset + len(columns[of])], of)
        offset += len(columns[of]) + 1
    for axis, name in zip(axes[:, 0], names, strict=True):
        place = dict(transform=axis.transAxes, ha="right", va="center")
        axis.text(-0.25, 0.5, name, fontsize=9, **place)
    figure.savefig(path, bbox_inches="tight", metadata={"Software": None})


def _columns(labels: np.ndarray, per_class: int) -> np.ndarray:
    return np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in np.unique(labels)])


def _displayed(pixels: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    low, high = value_range
    return np.clip((pixels - low) / (high - low), 0, 1)


def _headline(figure: Figure, axes: np.ndarray, of: str) -> None:
    first, last = axes[0].get_position(), axes[-1].get_position()
    style = dict(ha="center", color=COLOURS[of], weight="bold")
    figure.text((first.x0 + last.x1) / 2, first.y1 + 0.09, of.upper(), **style)


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
