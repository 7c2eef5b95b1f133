"""The contents of a run's metrics.json: models, metrics, audit and provenance."""

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from l2l_jax.config import Config
from l2l_jax.data.bad_images import read_lists
from l2l_jax.evals.encoder_features import EmbeddedImages
from l2l_jax.evals.evaluator import Evaluation, ModelMetrics
from l2l_jax.evals.tables import facts_json
from l2l_jax.experiment.workdir import Workdir, original_path
from l2l_jax.report.write import Drawings, write_report
from l2l_jax.utils.runtime import peak_memory
from l2l_jax.weights.loading import original_weights
from l2l_jax.weights.saved_models import read_card

PACKAGES = ("l2l_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")

# The audit report, if any, and reconstructions of the example images after its strongest attack
Audited = tuple[dict[str, Any] | None, Mapping[str, np.ndarray]]


def report_run(
    folders: Workdir,
    config: Config,
    evaluation: Evaluation,
    results: Mapping[str, ModelMetrics],
    costs: Any,
    features: EmbeddedImages,
    audited: Audited,
) -> dict[str, Any]:
    """Write `report/` and return the contents of metrics.json.

    Args:
      folders: Workdir of the run.
      config: Config of the experiment.
      evaluation: Evaluation of the models.
      results: Metrics of "original" and "unlearned" and, if available, "retrained" models.
      costs: "durations_seconds" and "peak_memory_gib_after", by phase.
      features: Encoder features of test images, for all these models.
      audited: Audit report, if any, and reconstructions of the example images after its strongest attack.
    """
    audit, attacked = audited
    stages = [folders.pretrain / stage.name for stage in config.model.pretraining_stages()]
    trainings = {path.name: path for path in (*stages, folders.unlearn) if path.exists()}
    first, tasks = jax.devices()[0], results["original"].tasks

    def by_model(field: str, task: str) -> dict[str, dict[str, Any]]:
        by_name = {name: result.tasks[task].sets for name, result in results.items()}
        return {name: {s: getattr(x, field) for s, x in sets.items()} for name, sets in by_name.items()}

    report = {
        **{name: result.metrics for name, result in results.items()},
        "task": evaluation.inpainter.task.name,
        "class_names": {
            name: [str(evaluation.class_names[i]) for i in np.unique(images.labels)]
            for name, images in evaluation.tests.items()
        },
        "classes": by_model("classes", next(iter(tasks))),
        "intervals": by_model("intervals", next(iter(tasks))),
        "real_images": results["original"].first.real_images,
        "tasks": {task: by_model("metrics", task) for task in tasks},
        **facts_json(evaluation, results),
        "bad_training_images": {name: read_lists(path) for name, path in trainings.items()},
        **_facts_of_models(folders, config),
        "audit": audit,
        "seed": config.seed,
        "config": config.describe(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "device": {
            "platform": first.platform,
            "kind": first.device_kind,
            "count": jax.device_count(),
            "processes": jax.process_count(),
        },
        **costs,
        "peak_memory_gib": round(peak_memory(), 3),
    }
    examples: dict[str, Mapping[str, np.ndarray]] = {name: result.shown for name, result in results.items()}
    examples |= {"attacked": dict(attacked)} if attacked else {}
    return write_report(folders.report, report, Drawings(evaluation, examples, trainings, features))


def _facts_of_models(folders: Workdir, config: Config) -> dict[str, Any]:
    """Return the origin of the original model and the outcome of the retain budget, if any.

    The budget of a model that was unlearned elsewhere is unknown.
    """
    if folders.unlearned.exists():
        metadata = read_card(folders.unlearned)
        budget = metadata.get("retain_budget")
        return {"original_weights": metadata["original_weights"], "retain_budget": budget}
    weights = original_weights(original_path(config, folders.folder))
    return {"original_weights": weights, "retain_budget": None}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from a checkout, not installed
        return "not installed"
