"""The report of a run: metrics.json, metrics.csv, images, and a self-contained HTML file."""

import base64
import importlib.resources
import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jinja2
import numpy as np

from l2l_jax.errors import UserError
from l2l_jax.evals.encoder_features import EmbeddedImages
from l2l_jax.evals.evaluator import Evaluation
from l2l_jax.evals.tables import reasons
from l2l_jax.report import tables
from l2l_jax.report.text import details, headline
from l2l_jax.utils.io import atomic_write

logger = logging.getLogger(__name__)
METRICS = "metrics.json"
STYLES = {"forgotten": "good", "hidden": "bad", "not forgotten": "bad"}


class Drawings(NamedTuple):
    """Data for the images of a report."""

    evaluation: Evaluation  # evaluation with the example images
    # Reconstructions of example images by model, then by set; "attacked": after the strongest attack
    inpainted: Mapping[str, Mapping[str, np.ndarray]]
    curves: Mapping[str, pathlib.Path]  # folders with the metrics of each training run, by name
    features: EmbeddedImages  # encoder features of test images


def write_report(folder: pathlib.Path, report: dict[str, Any], drawings: Drawings) -> dict[str, Any]:
    """Write a report and return the contents of metrics.json, which is written before anything is drawn.

    Durations and memory of phases finished in an earlier run are taken from the earlier report.

    Raises:
      UserError: The images or the page cannot be created.
    """
    folder.mkdir(parents=True, exist_ok=True)
    report = _with_earlier_costs(report, folder / METRICS)
    atomic_write(folder / METRICS, json.dumps(report, indent=2) + "\n")
    atomic_write(folder / "metrics.csv", tables.to_csv(report).encode("utf-8", "backslashreplace"))
    try:
        html = page(report, draw(folder, drawings, report["audit"]), folder.resolve().parent.name)
    except Exception as error:
        logger.exception("Drawing the report failed")
        raise UserError(
            f"The report cannot be drawn ({type(error).__name__}: {error}). The model and "
            f"{folder / METRICS} are complete; rerun the same command to try again without training."
        ) from error
    atomic_write(folder / "report.html", html)
    return report


def draw(folder: pathlib.Path, drawings: Drawings, audit: dict[str, Any] | None) -> dict[str, pathlib.Path]:
    """Draw all images and return their files by name."""
    from l2l_jax.report import pictures, plots  # matplotlib is slow to import

    evaluation, inpainted, curves, features = drawings
    files: dict[str, pathlib.Path] = {}

    def file(name: str) -> pathlib.Path:
        return files.setdefault(name, folder / f"{name}.png")

    pictures.save_grid(file("restorations"), evaluation, inpainted)
    plots.save_curves(file("losses"), curves)
    for name in tables.SETS:
        few = {model: sets for model, sets in inpainted.items() if model != "retrained" and name in sets}
        pictures.save_examples(file(f"examples_{name}"), evaluation, few, name)
    if sum(map(len, features.labels.values())) >= plots.NEEDED:
        plots.save_features(file("features"), features, evaluation.class_names)
    if audit is not None:
        plots.save_forest(file("forest"), audit)
        if audit["curves"]:
            plots.save_attack_curves(file("attacks"), audit)
    return files


def page(report: Mapping[str, Any], drawn: Mapping[str, pathlib.Path], title: str) -> str:
    """Render the report as a self-contained HTML page, with the images of `draw` embedded."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = importlib.resources.files(__package__).joinpath("report.html.j2").read_text("utf-8")
    audit = report["audit"] or {}
    titles = {entry["name"]: entry["title"] for entry in audit.get("comparisons", ())}
    text = environment.from_string(template).render(
        report=report,
        title=title,
        headline=headline(report),
        details=details(report),
        style=STYLES.get(audit["verdict"]["finding"], "") if audit else "",
        shown_attack=titles.get(audit.get("shown_attack")),
        tables={
            "metrics": tables.metrics_table(report),
            "classes": tables.class_table(report),
            "tasks": tables.task_table(report),
            "attacks": audit and tables.attack_table(audit),
            "depths": audit and tables.depth_table(audit),
            "evidence": audit and tables.evidence_table(audit),
            "canaries": audit and tables.canary_table(audit),
        },
        pictures={
            name: f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
            for name, path in drawn.items()
        },
        unavailable=reasons(report),
        config=json.dumps(report["config"], indent=2),
    )
    return text.encode("utf-8", "backslashreplace").decode()  # file names may not be UTF-8


def _with_earlier_costs(report: dict[str, Any], path: pathlib.Path) -> dict[str, Any]:
    """Return the report with each duration and peak memory replaced by an earlier report's if greater."""
    try:
        earlier = json.loads(path.read_text("utf-8"))
        if any(earlier[key] != report[key] for key in ("config", "seed", "original_weights")):
            return report
        peak = max(report["peak_memory_gib"], float(earlier["peak_memory_gib"]))
        merged = {**report, "peak_memory_gib": peak}
        for key in ("durations_seconds", "peak_memory_gib_after"):
            phases = {**earlier[key], **report[key]}
            merged[key] = {k: max(float(x), float(earlier[key].get(k, x))) for k, x in phases.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):  # missing or damaged
        return report
    return merged
