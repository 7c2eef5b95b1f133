"""The report of a run: metrics.json, metrics.csv, pictures, and one HTML file that holds it all."""

import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from l2l_jax.errors import UserError
from l2l_jax.evals import tsne
from l2l_jax.evals.encoder_features import EmbeddedImages
from l2l_jax.evals.evaluator import Evaluation
from l2l_jax.report.csv import to_csv
from l2l_jax.report.page import page
from l2l_jax.utils.io import atomic_write

logger = logging.getLogger(__name__)

METRICS = "metrics.json"


class Drawings(NamedTuple):
    """What the pictures of a report show.

    Attributes:
      evaluation: Holds the test images that are shown.
      inpainted: Their reconstructions by model, then by set; "attacked": after the strongest attack.
      curves: Folders with the scalars of each training, by its name.
      features: Encoder features of test images.
    """

    evaluation: Evaluation
    inpainted: Mapping[str, Mapping[str, np.ndarray]]
    curves: Mapping[str, pathlib.Path]
    features: EmbeddedImages


def write_report(folder: pathlib.Path, report: dict[str, Any], drawings: Drawings) -> dict[str, Any]:
    """Write a report and return the content of metrics.json, which is written before anything is drawn.

    Durations and memory of a phase that was finished before are kept from the earlier report.

    Args:
      folder: `report/` of the workdir.
      report: The content of metrics.json.
      drawings: What the pictures show.

    Raises:
      UserError: The pictures or the page cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    report = _with_earlier_costs(report, folder / METRICS)
    atomic_write(folder / METRICS, json.dumps(report, indent=2) + "\n")
    atomic_write(folder / "metrics.csv", to_csv(report).encode("utf-8", "backslashreplace"))
    try:
        html = page(report, draw(folder, drawings, report["audit"]), folder.resolve().parent.name)
    except Exception as error:
        logger.exception("Drawing the report failed")
        raise UserError(
            f"The report cannot be drawn ({type(error).__name__}: {error}). The model and "
            f"{folder / METRICS} are complete; the same command tries again without training anything."
        ) from error
    atomic_write(folder / "report.html", html)
    return report


def draw(
    folder: pathlib.Path, drawings: Drawings, audit: Mapping[str, Any] | None
) -> dict[str, pathlib.Path]:
    """Draw all pictures and return their files by name."""
    from l2l_jax.report import audit_pictures, pictures  # matplotlib takes long to load

    evaluation, inpainted, curves, features = drawings
    files = {name: folder / f"{name}.png" for name in ("restorations", "losses")}
    pictures.save_grid(files["restorations"], evaluation, inpainted)
    pictures.save_curves(files["losses"], curves)
    for name in ("forget", "retain"):
        files[f"examples_{name}"] = folder / f"examples_{name}.png"
        few = {model: sets for model, sets in inpainted.items() if model != "retrained" and name in sets}
        pictures.save_examples(files[f"examples_{name}"], evaluation, few, name)
    if sum(map(len, features.labels.values())) >= tsne.LEAST:
        files["features"] = folder / "features.png"
        audit_pictures.save_features(files["features"], features, evaluation.class_names)
    if audit is not None:
        files["forest"] = folder / "forest.png"
        audit_pictures.save_forest(files["forest"], audit)
        if audit["curves"]:
            files["attacks"] = folder / "attacks.png"
            audit_pictures.save_attack_curves(files["attacks"], audit)
    return files


def _with_earlier_costs(report: dict[str, Any], path: pathlib.Path) -> dict[str, Any]:
    """Return the report with the greater of its durations and memory and those of an earlier report."""
    try:
        earlier = json.loads(path.read_text("utf-8"))
        if any(earlier[key] != report[key] for key in ("config", "seed", "original_weights")):
            return report
        merged = {**report, "peak_memory_gib": max(report["peak_memory_gib"], earlier["peak_memory_gib"])}
        for key in ("durations_seconds", "peak_memory_gib_after"):
            phases = {**earlier[key], **report[key]}
            merged[key] = {phase: max(x, earlier[key].get(phase, x)) for phase, x in phases.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or damaged
        return report
    return merged
