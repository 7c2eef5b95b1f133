"""The report of a run: metrics.json, pictures, and one HTML file that holds it all."""

import base64
import importlib.metadata
import importlib.resources
import json
import pathlib
import platform
import resource
from collections.abc import Mapping
from typing import Any

import jax
import jinja2
from tabulate import tabulate

from l2l_jax.config import Config
from l2l_jax.data.bad_images import read_lists
from l2l_jax.evaluation import pictures
from l2l_jax.evaluation.evaluate import Evaluation, ModelFigures
from l2l_jax.evaluation.figures import FIGURES
from l2l_jax.weights.store import read_card
from l2l_jax.workdir import Workdir

MODELS = ("original", "unlearned")
SETS = ("retain", "forget")
PACKAGES = ("l2l_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def write_report(
    folders: Workdir,
    config: Config,
    evaluation: Evaluation,
    results: Mapping[str, ModelFigures],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Write `report/` and return what metrics.json holds.

    Args:
      folders: the workdir.
      config: the experiment.
      evaluation: where the models were evaluated.
      results: of the "original" and the "unlearned" model.
      seconds: duration of the phases of this process.
    """
    folder = folders.report
    folder.mkdir(parents=True, exist_ok=True)
    stages = [folders.pretrain / stage.name for stage in config.model.pretraining_stages()]
    stages.append(folders.unlearn)
    report = {
        **{name: result.figures for name, result in results.items()},
        "task": evaluation.restorer.task.name,
        "intervals": {name: result.intervals for name, result in results.items()},
        "real_images": results["original"].first.real_images,
        "tasks": by_task(results),
        "not_available": evaluation.missing,
        "networks": {name: dict(network.weights) for name, network in evaluation.networks.items()},
        "test_images": {of: {"count": len(s), "skipped": s.skipped} for of, s in evaluation.tests.items()},
        "bad_training_images": {path.name: read_lists(path) for path in stages if path.exists()},
        "original_weights": read_card(folders.unlearned)["original_weights"],
        "retain_budget": read_card(folders.unlearned).get("retain_budget"),
        "seed": config.seed,
        "config": config.describe(),
        "versions": _versions(),
        "device": _device(),
        "durations_seconds": dict(seconds),
        "peak_memory_gib": round(_peak_memory(), 3),
    }
    shown = {name: result.shown for name, result in results.items()}
    pictures.save_grid(folder / "restorations.png", evaluation, shown)
    curves = {path.name: path for path in stages if path.exists()}
    pictures.save_curves(folder / "losses.png", curves)
    (folder / "metrics.json").write_text(json.dumps(report, indent=2) + "\n")
    (folder / "report.html").write_text(_html(report, folder, folders.folder))
    return report


def by_task(results: Mapping[str, ModelFigures]) -> dict[str, Any]:
    """Figures of all tasks: by task, model, set and name."""
    first = next(iter(results.values()))
    return {
        task: {
            name: {of: figures.figures for of, figures in result.tasks[task].sets.items()}
            for name, result in results.items()
        }
        for task in first.tasks
    }


def figure_names(report: Mapping[str, Any]) -> list[str]:
    """Those of `FIGURES` that the report has."""
    return [name for name in FIGURES if name in report["original"]["retain"]]


def rows(report: Mapping[str, Any]) -> list[list[Any]]:
    """The figures of a report as table rows: set, model, then `figure_names`."""
    names = figure_names(report)
    return [[of, model, *(report[model][of][name] for name in names)] for of in SETS for model in MODELS]


def table(report: Mapping[str, Any]) -> str:
    """The figures of a report as a table for the console."""
    names = figure_names(report)
    headers = ["set", "model", *(FIGURES[name].heading for name in names)]
    return tabulate(
        rows(report), headers=headers, floatfmt=("", "", *(FIGURES[name].format for name in names))
    )


def _html(report: Mapping[str, Any], folder: pathlib.Path, workdir: pathlib.Path) -> str:
    template = importlib.resources.files(__package__).joinpath("report.html.j2").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)

    names = figure_names(report)

    def picture(name: str) -> str:
        data = base64.b64encode((folder / name).read_bytes()).decode()
        return f"data:image/png;base64,{data}"

    return environment.from_string(template).render(
        report=report,
        rows=[
            [*row[:2], *(format(x, FIGURES[name].format) for x, name in zip(row[2:], names, strict=True))]
            for row in rows(report)
        ],
        headings=[FIGURES[name].heading for name in names],
        restorations=picture("restorations.png"),
        losses=picture("losses.png"),
        config=json.dumps(report["config"], indent=2),
        title=workdir.resolve().name,
    )


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from a checkout, not installed
            versions[name] = "not installed"
    return versions


def _device() -> dict[str, Any]:
    first = jax.devices()[0]
    return {
        "platform": first.platform, "kind": first.device_kind, "count": jax.device_count(),
        "processes": jax.process_count(),
    }  # fmt: skip


def _peak_memory() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if platform.system() == "Darwin" else 1024  # bytes there, KiB elsewhere
    return peak * unit / 2**30
