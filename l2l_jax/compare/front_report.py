"""Reports on the Pareto fronts of methods: front.json, front.md and front.png."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tabulate import tabulate

from l2l_jax.compare.area import Point, area_interval, dominated, relative, staircase
from l2l_jax.evals.intervals import bootstrap
from l2l_jax.report import plots
from l2l_jax.report.tables import SETS
from l2l_jax.utils.io import atomic_write

# Results of one setting, by seed: "errors" by split and set, "figures" (metrics) by set and, for audited
# models, "depth" by attack; or "failed"
Cells = Sequence[Mapping[str, Any]]


def write(folder: pathlib.Path, by_setting: Mapping[Any, Cells], original: Any, facts: Any) -> dict[str, Any]:
    """Write front.json, front.md and front.png, and return the contents of front.json.

    These are the `summary` and `facts`: "grid", "limit" and "config" of the run. A setting has the attributes
    `method` and `label`.
    """
    report = summary(by_setting, original, facts["limit"]) | dict(facts)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "front.json", json.dumps(report, indent=2) + "\n")
    atomic_write(folder / "front.md", tables(report, "github") + "\n")
    _draw(folder / "front.png", report)
    return report


def summary(by_setting: Mapping[Any, Cells], original: Mapping[str, Any], limit: float) -> dict[str, Any]:
    """Summarize the results of all cells.

    Returns:
      Dict with "original": metrics of the original model on test images; "settings": for each setting, in the
      given order, "method", "setting", and unless it "failed": "validation" (cost and gain, medians over
      seeds), "test" (error ratios with intervals over images, accuracies), "depth" if the model was audited,
      "dominated" (by any setting of any method, on validation images); "methods": by method, "area" with its
      interval, and "chosen" settings, each with the least cost from which it is chosen.
    """
    lines, errors = [], []
    for setting, cells in by_setting.items():
        failed = [cell["failed"] for cell in cells if "failed" in cell]
        measured = {"failed": failed[0]} if failed else _measured(cells, original)
        lines.append({"method": setting.method, "setting": setting.label} | measured)
        errors.append([] if failed else [_errors(cell, "test", "forget") for cell in cells])
    done = [line for line in lines if "failed" not in line]
    for line, worse in zip(done, dominated([_point(line) for line in done]), strict=True):
        line["dominated"] = worse
    methods = {}
    for method in dict.fromkeys(line["method"] for line in lines):
        own = [i for i, line in enumerate(lines) if line["method"] == method and "failed" not in line]
        points = [_point(lines[i]) for i in own]
        before = _errors(original, "test", "forget")
        methods[method] = {
            "area": list(area_interval([errors[i] for i in own], before, points, limit)),
            "chosen": [[cost, lines[own[i]]["setting"]] for cost, i in staircase(points, limit)],
        }
    return {"original": original["figures"], "settings": lines, "methods": methods}


def _errors(result: Mapping[str, Any], kind: str, set_name: str) -> np.ndarray:
    return np.asarray(result["errors"][kind][set_name], np.float64)


def _measured(cells: Cells, original: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of one setting: medians over seeds, and the depth after the strongest attack."""
    test: dict[str, dict[str, Any]] = {}
    ratios = []
    for name in SETS:
        models = {kind: [_errors(cell, kind, name) for cell in cells] for kind in ("validation", "test")}
        before = {kind: _errors(original, kind, name) for kind in models}
        ratios.append(float(relative(models["validation"], before["validation"])))

        def ratio(chosen, models=models["test"], before=before["test"]):
            return relative(models, before, chosen)

        test[name] = {"ratio": list(bootstrap(ratio, len(before["test"])))}
        if "accuracy" in original["figures"][name]:
            test[name]["accuracy"] = float(np.median([cell["figures"][name]["accuracy"] for cell in cells]))
    metrics = {"validation": {"cost": ratios[0] - 1, "gain": float(np.log(ratios[1]))}, "test": test}
    depths = [cell.get("depth", {}) for cell in cells]
    attacks = set.intersection(*map(set, depths))
    if attacks:
        metrics["depth"] = min(float(np.median([depth[attack] for depth in depths])) for attack in attacks)
    return metrics


def _point(line: Mapping[str, Any]) -> Point:
    return Point(**line["validation"])


def tables(report: Mapping[str, Any], style: str = "simple") -> str:
    """Format a table of the areas under the methods' Pareto fronts and a table of all settings."""
    areas = [
        [method, _interval(front["area"]), ", ".join(name for _, name in front["chosen"]) or "none"]
        for method, front in sorted(report["methods"].items(), key=lambda item: -item[1]["area"][0])
    ]
    settings = [["original", "", "×1", "×1", "×1", *_accuracies(report["original"]), "", ""]]
    for line in report["settings"]:
        row = [line["method"], line["setting"]]
        if "failed" in line:
            settings.append([*row, "diverged", *[""] * 6])
            continue
        row.append(f"×{1 + line['validation']['cost']:.2f}")
        row += [f"×{_interval(line['test'][name]['ratio'])}" for name in SETS] + _accuracies(line["test"])
        row.append(f"{line['depth']:.2f}" if "depth" in line else "")
        settings.append([*row, "dominated" if line["dominated"] else ""])
    headings = [
        "method",
        "setting",
        "validation retain error",
        "test retain error [95 %]",
        "test forget error [95 %]",
        "retain accuracy",
        "forget accuracy",
        "least depth",
        "",
    ]
    both = ((areas, ["method", "area [95 %]", "settings on its front, by cost"]), (settings, headings))
    return "\n\n".join(tabulate(rows, names, tablefmt=style, disable_numparse=True) for rows, names in both)


def _accuracies(metrics: Mapping[str, Any]) -> list[str]:
    return [f"{metrics[name]['accuracy']:.3f}" if "accuracy" in metrics[name] else "" for name in SETS]


def _interval(numbers: Sequence[float]) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(*numbers)


def _draw(path: pathlib.Path, report: Mapping[str, Any]) -> None:
    """Plot retain cost against forgetting and, if models were audited, against depth."""
    done = [line for line in report["settings"] if "failed" not in line]
    deep = [line for line in done if "depth" in line]
    figure = Figure(figsize=(12.5 if deep else 7.5, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots(1, 2 if deep else 1, squeeze=False)[0]
    limit = report["limit"]
    for number, method in enumerate(report["methods"]):
        color = colormaps["tab10"](number % 10)
        _draw_method(axes[0], method, [line for line in done if line["method"] == method], limit, color)
        for line in deep:
            if line["method"] == method:
                axes[1].plot(100 * line["validation"]["cost"], line["depth"], "o", color=color)
    axes[0].plot([0], [1], "k*", label="original")
    axes[0].set(ylabel="forget error, times the original's", yscale="log")
    if deep:
        axes[1].set(ylabel="least depth by log error")
    for axis in axes:
        left = min(0, axis.get_xlim()[0])
        axis.set(xlabel="retain error above the original's, %", xlim=(left, 100 * limit * 1.2))
        axis.axvline(100 * limit, color="#999999", linewidth=0.8, linestyle=":")
        axis.grid(alpha=0.3)
    plots.save(figure, path, axes[0])


def _draw_method(axis: Axes, method: str, own: Sequence[Mapping[str, Any]], limit: float, color: Any) -> None:
    """Draw the settings as dots, hollow if dominated by a setting of any method, and the Pareto front."""
    points = [_point(line) for line in own]
    if steps := staircase(points, limit):
        costs = [*(100 * cost for cost, _ in steps), 100 * limit]
        gains = [float(np.exp(points[i].gain)) for _, i in steps]
        axis.step(costs, [*gains, gains[-1]], where="post", color=color, label=method)
    for line, (cost, gain) in zip(own, points, strict=True):
        filled = "none" if line["dominated"] else color
        axis.plot(100 * cost, float(np.exp(gain)), "o", color=color, markerfacecolor=filled)
