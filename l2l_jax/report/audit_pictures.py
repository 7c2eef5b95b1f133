"""Pictures of an audit and of encoder features, drawn with matplotlib."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from l2l_jax.evals import tsne
from l2l_jax.evals.encoder_features import EmbeddedImages
from l2l_jax.report.labels import families, label

MODEL_COLORS = {"original": "#333333", "unlearned": "#a3242b", "retrained": "#2b5fa3"}
MODEL_LINES = {"original": ":", "unlearned": "-", "retrained": "--"}

RATIOS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.4, 2, 3, 5, 10, 20)
"""Ticks of ratios of errors."""

OUTCOMES = {
    "no more": "#1b6e3c",
    "less": "#1b6e3c",
    "open": "#777777",
    "as much": "#a3242b",
    "more": "#a3242b",
}
"""Colors of what the unlearned model knows compared with the reference."""


def save_forest(path: pathlib.Path, audit: Mapping[str, Any]) -> None:
    """Draw each comparison with its bounds and margin: masked MSE above, accuracy and AUC below.

    Args:
      path: PNG file to write.
      audit: What `score.conclude` returned.
    """
    errors = [entry for entry in audit["comparisons"] if entry["measure"] == "error"]
    others = [entry for entry in audit["comparisons"] if entry["measure"] != "error"]
    panels = [found for found in (errors, others) if found]
    heights = [0.3 * len(found) + 0.75 for found in panels]
    figure = Figure(figsize=(4.8, sum(heights) + 0.3), dpi=200, layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, found in zip(axes, panels, strict=True):
        _draw_panel(axis, found)
        axis.set_xlabel(f"accuracy or AUC: unlearned − {audit['reference']} model", fontsize=8)
        if found is errors:
            axis.set_xlabel(f"masked MSE: {audit['reference']} ÷ unlearned model", fontsize=8)
            low, high = axis.get_xlim()
            ticks = [tick for tick in RATIOS if low <= math.log(tick) <= high]
            axis.set_xticks(np.log(ticks), [f"{tick:g}" for tick in ticks])
    outcomes = {entry["outcome"] for entry in audit["comparisons"]}
    handles = [
        axes[0].plot([], [], "o", color=color, label=f"knows {name}" if name != "open" else name)[0]
        for name, color in OUTCOMES.items()
        if name in outcomes
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=3, fontsize=8, frameon=False)
    figure.savefig(path, metadata={"Software": None})


def _draw_panel(axis: Axes, found: Sequence[Mapping[str, Any]]) -> None:
    """Draw comparisons as lines of a panel; to the right the unlearned model knows more."""
    for line, entry in enumerate(found):
        color, margin = OUTCOMES[entry["outcome"]], entry["margin"]
        axis.plot([entry["low"], entry["high"]], [line, line], color=color, linewidth=2)
        axis.plot(entry["excess"], line, "o", color=color, markersize=5)
        axis.plot([margin, margin], [line - 0.45, line + 0.45], color="black", linewidth=1.2)
        axis.fill_betweenx([line - 0.5, line + 0.5], margin, 99, color="#a3242b", alpha=0.07, linewidth=0)
    axis.axvline(0, color="#999999", linewidth=0.8, linestyle=":")
    titles = [entry["title"].replace(", ", ",\n", 1) for entry in found]
    axis.set_yticks(range(len(found)), titles, fontsize=8, linespacing=0.9, family=families())
    ends = [entry[key] for entry in found for key in ("low", "high", "margin")]
    room = 0.06 * (max(ends) - min(ends))
    axis.set(xlim=(min(ends) - room, max(ends) + 2 * room), ylim=(len(found) - 0.5, -0.5))
    axis.tick_params(axis="x", labelsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def save_attack_curves(path: pathlib.Path, audit: Mapping[str, Any]) -> None:
    """Draw what training attacks recover over their steps: a panel for each, a curve for each model.

    Args:
      path: PNG file to write.
      audit: What `score.conclude` returned.
    """
    curves = audit["curves"]
    titles = {entry["name"]: entry["title"] for entry in audit["comparisons"]}
    columns = min(len(curves), 2)
    lines = math.ceil(len(curves) / columns)
    figure = Figure(figsize=(3.0 * columns, 2.2 * lines), dpi=180, layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis in axes.flat[len(curves) :]:
        axis.axis("off")
    for axis, (attack, models) in zip(axes.flat, curves.items(), strict=False):
        for model, points in models.items():
            steps = [point["step"] for point in points]
            values, low, high = np.array([point["mse"] for point in points], float).T
            style = dict(color=MODEL_COLORS[model], linestyle=MODEL_LINES[model])
            axis.plot(steps, values, marker="o", markersize=3, label=model, **style)
            axis.fill_between(steps, low, high, color=MODEL_COLORS[model], alpha=0.12, linewidth=0)
        axis.set_title(titles[attack], fontsize=8)
        axis.set_yscale("log")
        axis.tick_params(which="both", labelsize=7)
        axis.grid(alpha=0.3)
    figure.supxlabel("steps of the attack", fontsize=8)
    figure.supylabel("masked MSE of forget images", fontsize=8)
    axes.flat[0].legend(fontsize=7)
    figure.savefig(path, metadata={"Software": None})


def save_features(path: pathlib.Path, found: EmbeddedImages, class_names: Sequence[str]) -> None:
    """Draw t-SNE of encoder features of test images: a panel for each model.

    Args:
      path: PNG file to write.
      found: The features.
      class_names: Names of the class ids.
    """
    features, labels = found
    columns = min(len(features), 2)
    lines = math.ceil(len(features) / columns)
    figure = Figure(figsize=(4.2 * columns, 4.2 * lines), dpi=130, layout="constrained")
    classes = {class_id: name for name in labels for class_id in np.unique(labels[name])}
    few = len(classes) <= 10
    colors = colormaps["tab10" if few else "gist_ncar"](np.linspace(0, 1, len(classes)))
    for number, (model, sets) in enumerate(features.items(), 1):
        axis = figure.add_subplot(lines, columns, number, title=model, xticks=[], yticks=[])
        places = tsne.project(sets)
        for (class_id, name), color in zip(classes.items(), colors, strict=True):
            x, y = places[name][labels[name] == class_id].T
            text = f"{label(class_names[class_id])} ({name})" if few else None
            marker = "o" if name == "retain" else "^"
            axis.scatter(x, y, s=9, color=[color], marker=marker, linewidths=0, label=text)
    if few:
        handles = axis.get_legend_handles_labels()
        legend = figure.legend(*handles, loc="outside lower center", ncols=3, fontsize=8, markerscale=2)
        for entry in legend.get_texts():
            entry.set_fontfamily(families())
    figure.savefig(path, metadata={"Software": None})
