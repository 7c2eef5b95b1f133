"""The content of a run's metrics.json: models, metrics, audit, and how they were made."""

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from l2l_jax import shipped
from l2l_jax.config import Config
from l2l_jax.data.reading import read_lists
from l2l_jax.evals.encoder_features import EmbeddedImages
from l2l_jax.evals.evaluator import Evaluation, ModelMetrics
from l2l_jax.evals.tables import not_available, unreliable
from l2l_jax.experiment.workdir import Workdir
from l2l_jax.report.write import Drawings, write_report
from l2l_jax.utils.runtime import peak_memory
from l2l_jax.weights.loading import original_weights
from l2l_jax.weights.saved_models import read_card

PACKAGES = ("l2l_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def report_run(
    folders: Workdir,
    config: Config,
    evaluation: Evaluation,
    results: Mapping[str, ModelMetrics],
    costs: Mapping[str, Mapping[str, float]],
    features: EmbeddedImages,
    audited: tuple[dict[str, Any], Mapping[str, np.ndarray] | None] | None,
) -> dict[str, Any]:
    """Write `report/` and return the content of metrics.json.

    Args:
      folders: The workdir.
      config: The experiment.
      evaluation: Where the models were evaluated.
      results: Metrics of "original" and "unlearned" and, if there is one, of "retrained".
      costs: "durations_seconds" and "peak_memory_gib_after", by phase.
      features: Encoder features of test images, of all these models.
      audited: The audit, and reconstructions of the shown images after its strongest attack.
    """
    audit, attacked = audited or (None, None)
    stages = [folders.pretrain / stage.name for stage in config.model.pretraining_stages()]
    trainings = {path.name: path for path in (*stages, folders.unlearn) if path.exists()}
    report = {
        **{name: result.metrics for name, result in results.items()},
        "task": evaluation.inpainter.task.name,
        "class_names": {name: _class_names(evaluation, name) for name in evaluation.tests},
        "classes": {name: result.classes for name, result in results.items()},
        "intervals": {name: result.intervals for name, result in results.items()},
        "real_images": results["original"].first.real_images,
        "tasks": by_task(results),
        "not_available": not_available(evaluation, results),
        "unreliable": unreliable(results),
        "networks": {name: dict(network.weights) for name, network in evaluation.networks.items()},
        "test_images": {
            name: {"count": len(s), "skipped": s.skipped} for name, s in evaluation.tests.items()
        },
        "bad_training_images": {name: read_lists(path) for name, path in trainings.items()},
        "original_weights": _original_weights(folders, config),
        "retain_budget": _retain_budget(folders),
        "audit": audit,
        "seed": config.seed,
        "config": config.describe(),
        "versions": _versions(),
        "device": _device(),
        **costs,
        "peak_memory_gib": round(peak_memory(), 3),
    }
    shown: dict[str, Mapping[str, np.ndarray]] = {name: result.shown for name, result in results.items()}
    shown |= {"attacked": dict(attacked)} if attacked else {}
    return write_report(folders.report, report, Drawings(evaluation, shown, trainings, features))


def by_task(results: Mapping[str, ModelMetrics]) -> dict[str, Any]:
    """Return metrics of all tasks by task, model, set and name."""
    first = next(iter(results.values()))
    return {
        task: {
            name: {of: found.metrics for of, found in result.tasks[task].sets.items()}
            for name, result in results.items()
        }
        for task in first.tasks
    }


def _class_names(evaluation: Evaluation, set_name: str) -> list[str]:
    return [str(evaluation.class_names[i]) for i in np.unique(evaluation.tests[set_name].labels)]


def _retain_budget(folders: Workdir) -> dict[str, Any] | None:
    """Return the outcome of the run's retain budget; None without one, or for a model unlearned elsewhere."""
    return read_card(folders.unlearned).get("retain_budget") if folders.unlearned.exists() else None


def _original_weights(folders: Workdir, config: Config) -> dict[str, Any]:
    """Return the origin of the model that was unlearned, here or elsewhere."""
    if folders.unlearned.exists():
        return read_card(folders.unlearned)["original_weights"]
    return original_weights(shipped.resolved(config.pretrained) if config.pretrained else folders.pretrained)


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
        "platform": first.platform,
        "kind": first.device_kind,
        "count": jax.device_count(),
        "processes": jax.process_count(),
    }
