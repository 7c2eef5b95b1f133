"""Metrics of an evaluation as JSON, and as text for the console and Markdown."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from l2l_jax.evals.evaluator import Evaluation, ModelMetrics
from l2l_jax.evals.metrics import METRICS
from l2l_jax.utils.io import atomic_write


def metrics_json(evaluation: Evaluation, results: Mapping[str, ModelMetrics]) -> dict[str, Any]:
    """Return the contents of figures.json for models by name; see docs/concepts/evaluation.md."""
    first = next(iter(results.values()))
    tasks = {
        task: {
            name: {
                set_name: {"figures": own.metrics, "intervals": own.intervals, "classes": own.classes}
                for set_name, own in result.tasks[task].sets.items()
            }
            for name, result in results.items()
        }
        for task in first.tasks
    }
    real_images = {task: result.real_images for task, result in first.tasks.items()}
    return {"tasks": tasks, "real_images": real_images, **facts_json(evaluation, results)}


def facts_json(evaluation: Evaluation, results: Mapping[str, ModelMetrics]) -> dict[str, Any]:
    """Return titles of tasks, reasons for unavailable or unreliable metrics, networks and test images."""
    tasks = [task for result in results.values() for task in result.tasks.values()]
    all_metrics = [metrics for task in tasks for metrics in task.sets.values()]
    missing = [evaluation.missing, *(metrics.missing for metrics in all_metrics)]
    return {
        "titles": {name: inpainter.task.title for name, inpainter in evaluation.inpainters.items()},
        "not_available": {name: why for reasons in missing for name, why in reasons.items()},
        "unreliable": {name: why for metrics in all_metrics for name, why in metrics.unreliable.items()},
        "networks": {name: dict(network.weights) for name, network in evaluation.networks.items()},
        "test_images": {
            name: {"count": len(images), "skipped": images.skipped}
            for name, images in evaluation.tests.items()
        },
    }


def format_models(report: Mapping[str, Any], style: str = "simple") -> str:
    """Format a table for each task, with a row for each set and model."""
    parts = []
    for task, models in report["tasks"].items():
        sets = list(next(iter(models.values())))
        rows = {f"{set_name}, {name}": models[name][set_name] for set_name in sets for name in models}
        parts.append(f"{report['titles'][task]}\n\n{_table(rows, style)}")
    return "\n\n".join([*parts, "\n".join(reasons(report))]).strip()


def format_folders(report: Mapping[str, Any], style: str = "simple") -> str:
    """Format a table with a single row."""
    count = report["images"]["count"]
    table = _table({f"{count} image{'s' * (count > 1)}": report}, style)
    return "\n\n".join([table, "\n".join(reasons(report))]).strip()


def _table(rows: Mapping[str, Mapping[str, Any]], style: str) -> str:
    names = [name for name in METRICS if any(name in row["figures"] for row in rows.values())]
    body = [[label, *(_cell(row, name) for name in names)] for label, row in rows.items()]
    return tabulate(body, headers=["", *(METRICS[name].heading for name in names)], tablefmt=style)


def _cell(row: Mapping[str, Any], name: str) -> str:
    """Format a metric with its spread, or half the width of its interval."""
    if name not in row["figures"]:
        return "–"
    value, spec = row["figures"][name], METRICS[name].format
    if f"{name}_std" in row["figures"]:
        return f"{value:{spec}} ± {row['figures'][f'{name}_std']:{spec}}"
    if name in row["intervals"]:
        low, high = row["intervals"][name]
        return f"{value:{spec}} ± {(high - low) / 2:{spec}}"
    return format(value, spec)


def reasons(report: Mapping[str, Any]) -> list[str]:
    """Describe metrics that are not available or unreliable, as in "FID, KID: not available: …"."""
    sentences = []
    for key, kind in (("not_available", "not available"), ("unreliable", "unreliable")):
        names: dict[str, list[str]] = {}
        for name, why in report.get(key, {}).items():
            names.setdefault(why.removeprefix("not available: "), []).append(METRICS[name].heading)
        sentences += [f"{', '.join(headings)}: {kind}: {why}" for why, headings in names.items()]
    return sentences


def write(folder: pathlib.Path, report: Mapping[str, Any], text: str) -> None:
    """Write figures.json and, with the same metrics, figures.md to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "figures.json", json.dumps(report, indent=2) + "\n")
    atomic_write(folder / "figures.md", text + "\n")
