"""Pictures of an audit and of what encoders know, drawn with matplotlib."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from l2l_jax.evals import tsne
from l2l_jax.evals.encoder_features import EmbeddedImages

MODEL_COLOURS = {"original": "#333333", "unlearned": "#a3242b", "retrained": "#2b5fa3"}
MODEL_LINES = {"original": ":", "unlearned": "-", "retrained": "--"}


def save_relearning(path: pathlib.Path, curves: Mapping[str, Mapping[str, Sequence[Any]]], titles) -> None:
    """What attacks that train bring back, over their steps: a panel for each attack, a curve for each model.

    Args:
      path: PNG file to write.
      curves: points `{"step", "accuracy" or "mse": [value, low, high]}` by attack, then by model.
      titles: of the attacks.
    """
    columns = min(len(curves), 2)
    lines = -(-len(curves) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.2 * lines), dpi=130, layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis in axes.flat[len(curves) :]:
        axis.axis("off")
    for axis, (attack, models) in zip(axes.flat, curves.items(), strict=False):
        first = next(iter(models.values()))
        name = "accuracy" if "accuracy" in first[0] else "mse"
        for model, points in models.items():
            steps = [point["step"] for point in points]
            values, low, high = np.array([point[name] for point in points], float).T
            style = dict(color=MODEL_COLOURS[model], linestyle=MODEL_LINES[model])
            axis.plot(steps, values, marker="o", markersize=4, label=model, **style)
            axis.fill_between(steps, low, high, color=MODEL_COLOURS[model], alpha=0.12, linewidth=0)
        label = "accuracy, forget images" if name == "accuracy" else "hole MSE, forget images"
        axis.set(title=titles[attack], xlabel="steps of the attack", ylabel=label)
        axis.set_yscale("linear" if name == "accuracy" else "log")
        axis.grid(alpha=0.3)
    axes.flat[0].legend()
    figure.savefig(path, metadata={"Software": None})


def save_features(path: pathlib.Path, found: EmbeddedImages, class_names: Sequence[str]) -> None:
    """t-SNE of encoder features of test images: a panel for each model.

    Args:
      path: PNG file to write.
      found: the features.
      class_names: names of the class ids.
    """
    features, labels = found
    figure = Figure(figsize=(4.6 * len(features), 4.6), dpi=130, layout="constrained")
    classes = {label: of for of in labels for label in np.unique(labels[of])}
    few = len(classes) <= 10
    colours = colormaps["tab10" if few else "gist_ncar"](np.linspace(0, 1, len(classes)))
    for number, (model, sets) in enumerate(features.items(), 1):
        axis = figure.add_subplot(1, len(features), number, title=model, xticks=[], yticks=[])
        places = tsne.project(sets)
        for (label, of), colour in zip(classes.items(), colours, strict=True):
            x, y = places[of][labels[of] == label].T
            name = f"{class_names[label]} ({of})" if few else None
            marker = "o" if of == "retain" else "^"
            axis.scatter(x, y, s=9, color=[colour], marker=marker, linewidths=0, label=name)
    if few:
        handles = axis.get_legend_handles_labels()
        figure.legend(*handles, loc="outside right", fontsize=8, markerscale=2)
    figure.savefig(path, metadata={"Software": None})
