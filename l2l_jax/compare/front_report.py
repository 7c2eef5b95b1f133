"""The front of methods on paper: front.json, front.md and front.png."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tabulate import tabulate

from l2l_jax.compare.area import Errors, Point, area_interval, dominated, point, staircase
from l2l_jax.evals.intervals import bootstrap
from l2l_jax.utils.io import atomic_write

Cells = Sequence[Mapping[str, Any]]
"""Results of one setting, by seed: "errors" by kind of images and set, "figures" by set and, of audited
models, "depth" by attack; or "failed"."""


def write(
    folder: pathlib.Path, by_setting: Mapping[Any, Cells], original: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Write front.json, front.md and front.png, and return what front.json holds.

    Args:
      folder: Folder of the files.
      by_setting: Results by setting; a setting has a `method` and a `label`.
      original: Results of the original model.
      facts: "grid", "limit" and "config", as they were asked for.
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
      "original": its figures on test images. "settings": for each, in the order given, "method", "setting",
      and unless it "failed": "validation" (cost and gain, medians over the seeds), "test" (ratios of the
      errors with intervals over images, accuracies), "depth" where there was an audit, "dominated" (by
      any setting of any method, on validation images). "methods": "area" with its interval, and the
      "chosen" settings with the least cost at which each is taken, by method.
    """
    before = {kind: Errors.of(errors) for kind, errors in original["errors"].items()}
    settings, methods = [], {}
    for setting, cells in by_setting.items():
        line = {"method": setting.method, "setting": setting.label}
        settings.append(line | _measured(cells, before, original))
    done = [line for line in settings if "failed" not in line]
    points = [_point(line) for line in done]
    for line, worse in zip(done, dominated(points), strict=True):
        line["dominated"] = worse
    errors = {
        (setting.method, setting.label): [Errors.of(cell["errors"]["test"]) for cell in cells]
        for setting, cells in by_setting.items()
        if not any("failed" in cell for cell in cells)
    }
    for method in dict.fromkeys(line["method"] for line in settings):
        own = [line for line in done if line["method"] == method]
        chosen_by = [_point(line) for line in own]
        found = [errors[method, line["setting"]] for line in own]
        methods[method] = {
            "area": list(area_interval(found, before["test"], chosen_by, limit)),
            "chosen": [[cost, own[i]["setting"]] for cost, i in staircase(chosen_by, limit)],
        }
    return {"original": original["figures"], "settings": settings, "methods": methods}


def _measured(cells: Cells, before: Mapping[str, Errors], original: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of one setting."""
    failed = [cell["failed"] for cell in cells if "failed" in cell]
    if failed:
        return {"failed": failed[0]}
    errors = {kind: [Errors.of(cell["errors"][kind]) for cell in cells] for kind in before}
    test: dict[str, dict[str, Any]] = {
        of: {"ratio": _ratio([getattr(e, of) for e in errors["test"]], getattr(before["test"], of))}
        for of in Errors._fields
    }
    for of, told in test.items():
        if "accuracy" in original["figures"][of]:
            told["accuracy"] = float(np.median([cell["figures"][of]["accuracy"] for cell in cells]))
    validation = point(errors["validation"], before["validation"])._asdict()
    return {"validation": validation, "test": test} | _depth(cells)


def _depth(cells: Cells) -> dict[str, Any]:
    """Return the median depth over the seeds after the strongest attack; empty without an audit."""
    audited = [cell["depth"] for cell in cells if cell.get("depth")]
    if len(audited) < len(cells):
        return {}
    attacks = set.intersection(*map(set, audited))
    return (
        {"depth": min(float(np.median([depths[attack] for depths in audited])) for attack in attacks)}
        if attacks
        else {}
    )


def _ratio(models: Sequence[np.ndarray], original: np.ndarray) -> list[float]:
    """Return the median over seeds of the mean relative error, with its interval over images."""

    def median(chosen):
        return np.median([model[chosen].mean(-1) / original[chosen].mean(-1) for model in models], axis=0)

    return list(bootstrap(median, len(original)))


def _point(line: Mapping[str, Any]) -> Point:
    return Point(**line["validation"])


def tables(report: Mapping[str, Any], style: str = "simple") -> str:
    """Format a table of the areas under the methods' fronts and one of all settings."""
    best = sorted(report["methods"].items(), key=lambda item: -item[1]["area"][0])
    rows = [
        [method, _interval(told["area"], ".2f"), ", ".join(name for _, name in told["chosen"]) or "none"]
        for method, told in best
    ]
    headers = ["method", "area [95 %]", "settings on its front, by cost"]
    return "\n\n".join(
        [tabulate(rows, headers=headers, tablefmt=style, disable_numparse=True), _settings(report, style)]
    )


def _settings(report: Mapping[str, Any], style: str) -> str:
    headers = [
        "method", "setting", "validation retain error", "test retain error [95 %]",
        "test forget error [95 %]", "retain accuracy", "forget accuracy", "least depth", "",
    ]  # fmt: skip
    rows = [["original", "", "×1", "×1", "×1", *_accuracies(report["original"]), "", ""]]
    for line in report["settings"]:
        row = [line["method"], line["setting"]]
        if "failed" in line:
            rows.append([*row, "diverged", *[""] * 6])
            continue
        ratios = (_interval(line["test"][of]["ratio"], ".2f", "×") for of in Errors._fields)
        mark = "dominated" if line["dominated"] else ""
        cost = f"×{1 + line['validation']['cost']:.2f}"
        depth = f"{line['depth']:.2f}" if "depth" in line else ""
        rows.append([*row, cost, *ratios, *_accuracies(line["test"]), depth, mark])
    return tabulate(rows, headers=headers, tablefmt=style, disable_numparse=True)


def _accuracies(figures: Mapping[str, Any]) -> list[str]:
    return [f"{figures[of]['accuracy']:.3f}" if "accuracy" in figures[of] else "" for of in Errors._fields]


def _interval(numbers: Sequence[float], digits: str, sign: str = "") -> str:
    value, low, high = (format(x, digits) for x in numbers)
    return f"{sign}{value} [{low}, {high}]"


def _draw(path: pathlib.Path, report: Mapping[str, Any]) -> None:
    """Draw retain cost against forgetting and, where models were audited, against depth."""
    done = [line for line in report["settings"] if "failed" not in line]
    deep = [line for line in done if "depth" in line]
    figure = Figure(figsize=(12.5 if deep else 7.5, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots(1, 2 if deep else 1, squeeze=False)[0]
    limit = report["limit"]
    for number, method in enumerate(report["methods"]):
        colour = colormaps["tab10"](number % 10)
        own = [line for line in done if line["method"] == method]
        _draw_method(axes[0], method, own, limit, colour)
        for line in own if deep else ():
            if "depth" in line:
                axes[1].plot(100 * line["validation"]["cost"], line["depth"], "o", color=colour)
    axes[0].plot([0], [1], "k*", label="original")
    axes[0].set(ylabel="forget error, times the original's", yscale="log")
    if deep:
        axes[1].set(ylabel="least depth by log error")
    for axis in axes:
        axis.set(
            xlabel="retain error above the original's, %",
            xlim=(min(0, axis.get_xlim()[0]), 100 * limit * 1.2),
        )
        axis.axvline(100 * limit, color="#999999", linewidth=0.8, linestyle=":")
        axis.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right")  # type: ignore[call-overload]  # not in the stubs
    figure.savefig(path, metadata={"Software": None})


def _draw_method(
    axis: Axes, method: str, own: Sequence[Mapping[str, Any]], limit: float, colour: Any
) -> None:
    """Draw settings as dots, hollow where one of any method is better, and the staircase."""
    points = [_point(line) for line in own]
    steps = staircase(points, limit)
    if steps:
        costs = [*(100 * cost for cost, _ in steps), 100 * limit]
        gains = [float(np.exp(points[i].gain)) for _, i in steps]
        axis.step(costs, [*gains, gains[-1]], where="post", color=colour, label=method)
    for line, (cost, gain) in zip(own, points, strict=True):
        filled = "none" if line["dominated"] else colour
        axis.plot(100 * cost, float(np.exp(gain)), "o", color=colour, markerfacecolor=filled)
