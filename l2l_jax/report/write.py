"""The report of a run: metrics.json, pictures, and one HTML file that holds it all."""

import importlib.metadata
import json
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from l2l_jax import shipped
from l2l_jax.config import Config
from l2l_jax.data.reading import read_lists
from l2l_jax.evals import tsne
from l2l_jax.evals.encoder_features import EmbeddedImages
from l2l_jax.evals.evaluator import Evaluation, ModelMetrics
from l2l_jax.evals.tables import not_available, unreliable
from l2l_jax.experiment.workdir import Workdir
from l2l_jax.report.csv import to_csv
from l2l_jax.report.page import page, titles
from l2l_jax.utils.runtime import peak_memory
from l2l_jax.weights.loading import original_weights
from l2l_jax.weights.saved_models import read_card

PACKAGES = ("l2l_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def write_report(
    folders: Workdir,
    config: Config,
    evaluation: Evaluation,
    results: Mapping[str, ModelMetrics],
    seconds: Mapping[str, float],
    memory: Mapping[str, float],
    features: EmbeddedImages,
    audit: Mapping[str, Any] | None = None,
    attacked: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Write `report/` and return what metrics.json holds.

    Args:
      folders: the workdir.
      config: the experiment.
      evaluation: where the models were evaluated.
      results: of the "original" and the "unlearned" model, and of the "retrained" one if there is one.
      seconds: duration of the phases of this process.
      memory: its greatest memory in GiB up to the end of each phase.
      features: of test images, of all these models.
      audit: what `l2l_jax.audit` found, or None.
      attacked: restorations of the images of the picture, by set, after the attack `audit["shown_attack"]`.
    """
    folder = folders.report
    folder.mkdir(parents=True, exist_ok=True)
    stages = [folders.pretrain / stage.name for stage in config.model.pretraining_stages()]
    stages.append(folders.unlearn)
    report = {
        **{name: result.metrics for name, result in results.items()},
        "task": evaluation.inpainter.task.name,
        "intervals": {name: result.intervals for name, result in results.items()},
        "real_images": results["original"].first.real_images,
        "tasks": by_task(results),
        "classes": {name: result.classes for name, result in results.items()},
        "not_available": not_available(evaluation, results),
        "unreliable": unreliable(results),
        "networks": {name: dict(network.weights) for name, network in evaluation.networks.items()},
        "test_images": {of: {"count": len(s), "skipped": s.skipped} for of, s in evaluation.tests.items()},
        "bad_training_images": {path.name: read_lists(path) for path in stages if path.exists()},
        "original_weights": _original_weights(folders, config),
        "retain_budget": _retain_budget(folders),
        "audit": audit,
        "seed": config.seed,
        "config": config.describe(),
        "versions": _versions(),
        "device": _device(),
        "durations_seconds": dict(seconds),
        "peak_memory_gib": round(peak_memory(), 3),
        "peak_memory_gib_after": dict(memory),
    }
    shown = {name: result.shown for name, result in results.items()}
    if attacked:
        shown["attacked"] = attacked
    curves = {path.name: path for path in stages if path.exists()}
    drawn = _draw(folder, evaluation, shown, curves, features, audit)
    (folder / "metrics.json").write_text(json.dumps(report, indent=2) + "\n")
    (folder / "metrics.csv").write_text(to_csv(report))
    (folder / "report.html").write_text(page(report, drawn, folders.folder.resolve().name))
    return report


def _draw(folder, evaluation, shown, curves, features, audit) -> dict[str, pathlib.Path]:
    """Draw all pictures; their files by name."""
    from l2l_jax.report import (
        audit_pictures,  # matplotlib takes long to load
        pictures,
    )

    files = {name: folder / f"{name}.png" for name in ("restorations", "losses")}
    pictures.save_grid(files["restorations"], evaluation, shown)
    pictures.save_curves(files["losses"], curves)
    if sum(map(len, features.labels.values())) >= tsne.LEAST:
        files["features"] = folder / "features.png"
        audit_pictures.save_features(files["features"], features, evaluation.class_names)
    if audit is not None and audit["curves"]:
        files["relearning"] = folder / "relearning.png"
        audit_pictures.save_relearning(files["relearning"], audit["curves"], titles(audit))
    return files


def _retain_budget(folders: Workdir) -> dict[str, Any] | None:
    """What became of the run's retain budget; None without one, and for a model unlearned elsewhere."""
    return read_card(folders.unlearned).get("retain_budget") if folders.unlearned.exists() else None


def _original_weights(folders: Workdir, config: Config) -> dict[str, Any]:
    """Where the model came from that was unlearned; of a model that was unlearned elsewhere, the original."""
    if folders.unlearned.exists():
        return read_card(folders.unlearned)["original_weights"]
    return original_weights(shipped.resolved(config.pretrained) if config.pretrained else folders.pretrained)


def by_task(results: Mapping[str, ModelMetrics]) -> dict[str, Any]:
    """Figures of all tasks: by task, model, set and name."""
    first = next(iter(results.values()))
    return {
        task: {
            name: {of: found.metrics for of, found in result.tasks[task].sets.items()}
            for name, result in results.items()
        }
        for task in first.tasks
    }


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
