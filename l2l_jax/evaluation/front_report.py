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

from l2l_jax.evaluation.fronts import Errors, Point, area_interval, dominated, point, staircase
from l2l_jax.evaluation.intervals import bootstrap

Cells = Sequence[Mapping[str, Any]]
"""Results of one setting, by seed: "errors" by kind of images and set, "figures" by set, or "failed"."""


def write(
    folder: pathlib.Path, by_setting: Mapping[Any, Cells], original: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Write front.json, front.md and front.png, and return what front.json holds.

    Args:
      folder: where to.
      by_setting: results by setting; a setting has a `method` and a `label`.
      original: those of the original model.
      facts: "grid", "limit" and "config", as they were asked for.
    """
    report = summary(by_setting, original, facts["limit"]) | dict(facts)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "front.json").write_text(json.dumps(report, indent=2) + "\n")
    (folder / "front.md").write_text(tables(report, "github") + "\n")
    _draw(folder / "front.png", report)
    return report


def summary(by_setting: Mapping[Any, Cells], original: Mapping[str, Any], limit: float) -> dict[str, Any]:
    """What the cells come to.

    Returns:
      "original": its figures on test images. "settings": for each, in the order given, "method", "setting",
      and unless it "failed": "validation" (cost and gain, medians over the seeds), "test" (ratios of the
      errors with intervals over images, accuracies), "dominated" (by any setting of any method, on
      validation images). "methods": "area" with its interval, and the "chosen" settings with the least
      cost at which each is taken, by method.
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
    """What is told of one setting."""
    failed = [cell["failed"] for cell in cells if "failed" in cell]
    if failed:
        return {"failed": failed[0]}
    errors = {kind: [Errors.of(cell["errors"][kind]) for cell in cells] for kind in before}
    test = {
        of: {"ratio": _ratio([getattr(e, of) for e in errors["test"]], getattr(before["test"], of))}
        for of in Errors._fields
    }
    for of, told in test.items():
        if "accuracy" in original["figures"][of]:
            told["accuracy"] = float(np.median([cell["figures"][of]["accuracy"] for cell in cells]))
    return {"validation": point(errors["validation"], before["validation"])._asdict(), "test": test}


def _ratio(models: Sequence[np.ndarray], original: np.ndarray) -> list[float]:
    """Median over seeds of the mean error relative to the original's, with its interval over images."""

    def median(chosen):
        return np.median([model[chosen].mean(-1) / original[chosen].mean(-1) for model in models], axis=0)

    return list(bootstrap(median, len(original)))


def _point(line: Mapping[str, Any]) -> Point:
    return Point(**line["validation"])


def tables(report: Mapping[str, Any], style: str = "simple") -> str:
    """Methods by the area under their fronts, then all settings."""
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
        "test forget error [95 %]", "retain accuracy", "forget accuracy", "",
    ]  # fmt: skip
    rows = [["original", "", "×1", "×1", "×1", *_accuracies(report["original"]), ""]]
    for line in report["settings"]:
        row = [line["method"], line["setting"]]
        if "failed" in line:
            rows.append([*row, "diverged", *[""] * 5])
            continue
        ratios = (_interval(line["test"][of]["ratio"], ".2f", "×") for of in Errors._fields)
        mark = "dominated" if line["dominated"] else ""
        cost = f"×{1 + line['validation']['cost']:.2f}"
        rows.append([*row, cost, *ratios, *_accuracies(line["test"]), mark])
    return tabulate(rows, headers=headers, tablefmt=style, disable_numparse=True)


def _accuracies(figures: Mapping[str, Any]) -> list[str]:
    return [f"{figures[of]['accuracy']:.3f}" if "accuracy" in figures[of] else "" for of in Errors._fields]


def _interval(numbers: Sequence[float], digits: str, sign: str = "") -> str:
    value, low, high = (format(x, digits) for x in numbers)
    return f"{sign}{value} [{low}, {high}]"


def _draw(path: pathlib.Path, report: Mapping[str, Any]) -> None:
    """Retain cost against forgetting on validation images; a colour, and a staircase, for each method."""
    figure = Figure(figsize=(7.5, 4.5), dpi=120, layout="constrained")
    axis = figure.add_subplot()
    done = [line for line in report["settings"] if "failed" not in line]
    limit = report["limit"]
    for number, method in enumerate(report["methods"]):
        own = [line for line in done if line["method"] == method]
        _draw_method(axis, method, own, limit, colormaps["tab10"](number % 10))
    axis.plot([0], [1], "k*", label="original")
    axis.set(
        xlabel="retain error above the original's, %", ylabel="forget error, times the original's",
        yscale="log", xlim=(min(0, axis.get_xlim()[0]), 100 * limit * 1.2),
    )  # fmt: skip
    axis.axvline(100 * limit, color="#999999", linewidth=0.8, linestyle=":")
    axis.grid(alpha=0.3)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right")
    figure.savefig(path, metadata={"Software": None})


def _draw_method(
    axis: Axes, method: str, own: Sequence[Mapping[str, Any]], limit: float, colour: Any
) -> None:
    """Settings as dots, hollow where another one of any method is better, and the staircase."""
    points = [_point(line) for line in own]
    steps = staircase(points, limit)
    if steps:
        costs = [*(100 * cost for cost, _ in steps), 100 * limit]
        gains = [float(np.exp(points[i].gain)) for _, i in steps]
        axis.step(costs, [*gains, gains[-1]], where="post", color=colour, label=method)
    for line, (cost, gain) in zip(own, points, strict=True):
        filled = "none" if line["dominated"] else colour
        axis.plot(100 * cost, float(np.exp(gain)), "o", color=colour, markerfacecolor=filled)
