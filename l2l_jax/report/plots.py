"""Plots of training runs, audits and features, drawn with matplotlib."""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits

from l2l_jax.evals.encoder_features import EmbeddedImages
from l2l_jax.evals.evaluator import Evaluation
from l2l_jax.evals.metrics import METRICS
from l2l_jax.report.pictures import COLORS, families, label
from l2l_jax.train.hooks import read_metrics
from l2l_jax.utils.io import atomic_write

MODEL_STYLES: dict[str, dict[str, Any]] = {
    "original": dict(color="#333333", linestyle=":"),
    "unlearned": dict(color="#a3242b", linestyle="-"),
    "retrained": dict(color="#2b5fa3", linestyle="--"),
}

RATIOS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.4, 2, 3, 5, 10, 20)  # ticks of ratios of errors
# Maximum number of images per group for t-SNE, evenly spaced, and minimum number of images in total
PROJECTED, NEEDED = 500, 4
GOOD, BAD = COLORS["retain"], COLORS["forget"]
# Colors of the outcomes of comparisons with the reference model
OUTCOMES = {"no more": GOOD, "less": GOOD, "open": "#777777", "as much": BAD, "more": BAD}


def save_curves(path: pathlib.Path, phases: Mapping[str, pathlib.Path]) -> None:
    """Plot losses over steps, one panel per phase, from folders with `metrics.jsonl`; phases may be empty."""
    figure = Figure(figsize=(5 * max(len(phases), 1), 3.2), dpi=120, layout="constrained")
    if not phases:
        figure.text(0.5, 0.5, "Nothing was trained in this workdir.", ha="center")
    for number, (name, folder) in enumerate(phases.items(), start=1):
        axis = figure.add_subplot(1, len(phases), number)
        logged = read_metrics(folder)
        for term in ("loss", "retain", "forget"):
            points = [(row["step"], row[term]) for row in logged if term in row]
            if points:
                axis.plot(*zip(*points, strict=True), label=term, color=COLORS.get(term, "#333333"))
        axis.set(title=name, xlabel="step", yscale="log")
        axis.legend()
        axis.grid(alpha=0.3)
    save(figure, path)


def save_tradeoff(path: pathlib.Path, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Plot retain against forget quality: a distance and the accuracy if available, or PSNR and MSE.

    Each row is one point and holds metrics by set.
    """
    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    available = rows["original"]["retain"]
    distance = next((name for name in ("fid", "classifier_distance") if name in available), "psnr")
    for number, metric in enumerate((distance, "accuracy" if "accuracy" in available else "mse"), 1):
        axis = figure.add_subplot(1, 2, number)
        for index, (name, row) in enumerate(rows.items()):
            style: dict[str, Any] = dict(color=colormaps["viridis_r"](index / len(rows)))
            if name == "original":  # a ring, which does not hide other points
                style = dict(markersize=13, markerfacecolor="none", color="black")
            axis.plot(row["retain"][metric], row["forget"][metric], "o", label=name, **style)
        title = METRICS[metric].heading
        axis.set(xlabel=f"retain {title}", ylabel=f"forget {title}")
        axis.locator_params(nbins=6)
        axis.grid(alpha=0.3)
    save(figure, path, axis)


def save_forest(path: pathlib.Path, audit: Mapping[str, Any]) -> None:
    """Plot comparisons with their bounds and margins: calibrated MSE at the top, accuracy and AUC below."""
    errors = [entry for entry in audit["comparisons"] if entry["measure"] == "error"]
    others = [entry for entry in audit["comparisons"] if entry["measure"] != "error"]
    panels = [entries for entries in (errors, others) if entries]
    heights = [0.3 * len(entries) + 0.75 for entries in panels]
    figure = Figure(figsize=(4.8, sum(heights) + 0.3), dpi=200, layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, entries in zip(axes, panels, strict=True):
        _draw_panel(axis, entries)
        axis.set_xlabel(f"accuracy or AUC: unlearned − {audit['reference']} model", fontsize=8, loc="right")
        if entries is errors:
            label = f"calibrated MSE: {audit['reference']} ÷ unlearned model"
            axis.set_xlabel(label, fontsize=8, loc="right")
            low, high = axis.get_xlim()
            ticks = [tick for tick in RATIOS if low <= math.log(tick) <= high]
            axis.set_xticks(np.log(ticks), [f"{tick:g}" for tick in ticks])
    outcomes = {entry["outcome"] for entry in audit["comparisons"]}
    for name in (name for name in OUTCOMES if name in outcomes):
        text = "open" if name == "open" else f"knows {name}"
        axes[0].plot([], [], "o", color=OUTCOMES[name], label=text)
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper right", ncols=3, fontsize=8, frameon=False)
    save(figure, path)


def _draw_panel(axis: Axes, entries: Sequence[Mapping[str, Any]]) -> None:
    """Draw comparisons as rows of a panel; further right, the unlearned model knows more."""
    for line, entry in enumerate(entries):
        color, margin = OUTCOMES[entry["outcome"]], entry["margin"]
        axis.plot([entry["low"], entry["high"]], [line, line], color=color, linewidth=2)
        axis.plot(entry["excess"], line, "o", color=color, markersize=5)
        axis.plot([margin, margin], [line - 0.45, line + 0.45], color="black", linewidth=1.2)
        axis.fill_betweenx([line - 0.5, line + 0.5], margin, 99, color=BAD, alpha=0.07, linewidth=0)
    axis.axvline(0, color="#999999", linewidth=0.8, linestyle=":")
    titles = [entry["title"].replace(", ", ",\n", 1) for entry in entries]
    axis.set_yticks(range(len(entries)), titles, fontsize=8, linespacing=1.1, family=families())
    ends = [entry[key] for entry in entries for key in ("low", "high", "margin")]
    room = 0.06 * (max(ends) - min(ends))
    axis.set(xlim=(min(ends) - room, max(ends) + 2 * room), ylim=(len(entries) - 0.5, -0.5))
    axis.tick_params(axis="x", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _panels(count: int, width: float, height: float, dpi: int) -> tuple[Figure, list[Axes]]:
    columns = min(count, 2)
    lines = math.ceil(count / columns)
    figure = Figure(figsize=(width * columns, height * lines), dpi=dpi, layout="constrained")
    return figure, [figure.add_subplot(lines, columns, number) for number in range(1, count + 1)]


def save_attack_curves(path: pathlib.Path, audit: Mapping[str, Any]) -> None:
    """Plot the errors over the steps of training attacks: a panel for each attack, a curve for each model."""
    titles = {entry["name"]: entry["title"] for entry in audit["comparisons"]}
    figure, axes = _panels(len(audit["curves"]), 3.0, 2.2, dpi=180)
    for axis, (attack, models) in zip(axes, audit["curves"].items(), strict=True):
        for model, points in models.items():
            steps = [point["step"] for point in points]
            values, low, high = np.array([point["mse"] for point in points], float).T
            axis.plot(steps, values, marker="o", markersize=3, label=model, **MODEL_STYLES[model])
            color = MODEL_STYLES[model]["color"]
            axis.fill_between(steps, low, high, color=color, alpha=0.12, linewidth=0)
        axis.set_title(titles[attack], fontsize=8)
        axis.set_yscale("log")
        axis.tick_params(which="both", labelsize=7)
        axis.grid(alpha=0.3)
    figure.supxlabel("steps of the attack", fontsize=8)
    figure.supylabel("calibrated MSE of forget images", fontsize=8)
    axes[0].legend(fontsize=7)
    save(figure, path)


def project(features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Project groups of `[image, feature]` to `[image, 2]` by t-SNE (van der Maaten & Hinton 2008)."""
    from sklearn.manifold import TSNE  # slow to import: takes a second

    chosen = [x[np.linspace(0, len(x) - 1, min(len(x), PROJECTED)).astype(int)] for x in features.values()]
    rows = np.concatenate(chosen)
    if len(rows) < NEEDED:
        raise ValueError(f"t-SNE needs at least {NEEDED} images, not {len(rows)}")
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    perplexity = min(30.0, (len(rows) - 1) / 3)
    # 500 steps reach the same divergence as 1,000. With other work running, threads wait for each other.
    with threadpool_limits(1):
        points = TSNE(perplexity=perplexity, init="pca", random_state=0, max_iter=500).fit_transform(unit)
    ends = np.cumsum([len(group) for group in chosen])[:-1]
    return dict(zip(features, np.split(points, ends), strict=True))


def save_tsne(path: pathlib.Path, evaluation: Evaluation, models: Sequence[str], task: str) -> None:
    """Plot t-SNE of CLIP embeddings of originals and reconstructions, and write the points as JSON.

    Call it in the primary process, after `evaluate` of all these models. With too few images, nothing is
    written.
    """
    groups = {
        f"{set_name}, {model or 'images'}": evaluation.observed("clip/features", set_name, model, task)
        for set_name in evaluation.tests
        for model in ("", *models)
    }
    observed = {name: rows for name, rows in groups.items() if rows is not None}
    if sum(map(len, observed.values())) < NEEDED:
        return
    figure = Figure(figsize=(6.5, 5), dpi=130, layout="constrained")
    axis = figure.add_subplot(xticks=[], yticks=[])
    lists = {}
    for name, points in project(observed).items():
        set_name, _, model = name.partition(", ")
        marker = "o" if model == "images" else "x"
        axis.plot(*points.T, marker, markersize=4, alpha=0.6, label=name, color=COLORS[set_name])
        lists[name] = np.round(points.astype(float), 4).tolist()
    figure.legend(loc="outside right upper")
    save(figure, path)
    atomic_write(path.with_suffix(".json"), json.dumps(lists) + "\n")


def save_features(path: pathlib.Path, embedded: EmbeddedImages, class_names: Sequence[str]) -> None:
    """Plot t-SNE of encoder features of test images: a panel for each model."""
    features, labels = embedded
    classes = {class_id: name for name in labels for class_id in np.unique(labels[name])}
    few = len(classes) <= 10
    colors = colormaps["tab10" if few else "gist_ncar"](np.linspace(0, 1, len(classes)))
    figure, axes = _panels(len(features), 4.2, 4.2, dpi=130)
    for axis, (model, sets) in zip(axes, features.items(), strict=True):
        axis.set(title=model, xticks=[], yticks=[])
        points = project(sets)
        for (class_id, name), color in zip(classes.items(), colors, strict=True):
            x, y = points[name][labels[name] == class_id].T
            text = f"{label(class_names[class_id])} ({name})" if few else None
            marker = "o" if name == "retain" else "^"
            axis.scatter(x, y, s=9, color=[color], marker=marker, linewidths=0, label=text)
    if few:
        handles = axis.get_legend_handles_labels()
        legend = figure.legend(*handles, loc="outside lower center", ncols=3, fontsize=8, markerscale=2)
        for entry in legend.get_texts():
            entry.set_fontfamily(families())
    save(figure, path)


def save(figure: Figure, path: pathlib.Path, labeled: Axes | None = None) -> None:
    """Write a figure as PNG, with a legend on the right for the labels of an axis if given."""
    if labeled is not None:
        handles, labels = labeled.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right")  # type: ignore[call-overload]  # not in the stubs
    figure.savefig(path, metadata={"Software": None})
