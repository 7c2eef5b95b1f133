"""The figures of an evaluation as JSON, for the console and as Markdown."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from l2l_jax.evals.evaluator import Evaluation, ModelFigures
from l2l_jax.evals.figures import FIGURES
from l2l_jax.evals.tasks import parse_tasks


def figures_json(evaluation: Evaluation, results: Mapping[str, ModelFigures]) -> dict[str, Any]:
    """What figures.json holds of models; see docs/concepts/evaluation.md.

    Args:
      evaluation: where they were evaluated.
      results: by name of the model.
    """
    first = next(iter(results.values()))
    tasks = {
        task: {
            name: {
                of: {"figures": figures.figures, "intervals": figures.intervals}
                for of, figures in result.tasks[task].sets.items()
            }
            for name, result in results.items()
        }
        for task in first.tasks
    }
    return {
        "tasks": tasks,
        "real_images": {task: result.real_images for task, result in first.tasks.items()},
        "not_available": not_available(evaluation, results),
        "networks": {name: dict(network.weights) for name, network in evaluation.networks.items()},
        "test_images": {of: {"count": len(s), "skipped": s.skipped} for of, s in evaluation.tests.items()},
    }


def not_available(evaluation: Evaluation, results: Mapping[str, ModelFigures]) -> dict[str, str]:
    """Why figures are not available, by name."""
    missing = dict(evaluation.missing)
    for result in results.values():
        for task in result.tasks.values():
            for figures in task.sets.values():
                missing |= figures.missing
    return missing


def of_models(report: Mapping[str, Any], style: str = "simple") -> str:
    """A table for each task: a row for each set and model."""
    parts = []
    for task, models in report["tasks"].items():
        (parsed,) = parse_tasks([task])
        sets = list(next(iter(models.values())))
        rows = {f"{of}, {name}": models[name][of] for of in sets for name in models}
        parts.append(f"{parsed.title}\n\n{_table(rows, style)}")
    return "\n\n".join([*parts, "\n".join(reasons(report))]).strip()


def of_folders(report: Mapping[str, Any], style: str = "simple") -> str:
    """A table of one row."""
    count = report["images"]["count"]
    table = _table({f"{count} images": report}, style)
    return "\n\n".join([table, "\n".join(reasons(report))]).strip()


def _table(rows: Mapping[str, Mapping[str, Any]], style: str) -> str:
    shown = [name for name in FIGURES if any(name in row["figures"] for row in rows.values())]
    body = [[label, *(_cell(row, name) for name in shown)] for label, row in rows.items()]
    return tabulate(body, headers=["", *(FIGURES[name].heading for name in shown)], tablefmt=style)


def _cell(row: Mapping[str, Any], name: str) -> str:
    """A figure with its spread, or half the length of its interval."""
    if name not in row["figures"]:
        return "–"
    value, how = row["figures"][name], FIGURES[name].format
    if f"{name}_std" in row["figures"]:
        return f"{value:{how}} ± {row['figures'][f'{name}_std']:{how}}"
    if name in row["intervals"]:
        low, high = row["intervals"][name]
        return f"{value:{how}} ± {(high - low) / 2:{how}}"
    return format(value, how)


def reasons(report: Mapping[str, Any]) -> list[str]:
    """A sentence for each reason why figures are not available, as "FID, KID: not available: …"."""
    names: dict[str, list[str]] = {}
    for name, why in report["not_available"].items():
        names.setdefault(why.removeprefix("not available: "), []).append(FIGURES[name].heading)
    return [f"{', '.join(headings)}: not available: {why}" for why, headings in names.items()]


def write(folder: pathlib.Path, report: Mapping[str, Any], text: str) -> None:
    """Write figures.json and, with the same figures, figures.md to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("figures.json", json.dumps(report, indent=2)), ("figures.md", text)):
        unfinished = folder / f"{name}.unfinished"
        unfinished.write_text(content + "\n")
        os.replace(unfinished, folder / name)
