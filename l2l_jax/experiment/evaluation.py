"""Evaluation of saved models and of folders of images."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, get_args

from l2l_jax.config import Config
from l2l_jax.errors import UserError
from l2l_jax.evals import tables
from l2l_jax.evals.config import EvaluationConfig, NetworkName
from l2l_jax.evals.evaluator import Evaluation
from l2l_jax.evals.features.networks import open_networks
from l2l_jax.evals.folders import compare_folders, open_images
from l2l_jax.experiment.workdir import original_path
from l2l_jax.utils.claim import claim
from l2l_jax.utils.multihost import barrier, from_primary, on_primary
from l2l_jax.weights.loading import load_pretrained, original_weights


def evaluate_models(
    config: Config, workdir: pathlib.Path, unlearned: pathlib.Path | None = None
) -> dict[str, Any]:
    """Evaluate the original and the unlearned model; write `workdir/evaluation/figures.json`.

    The unlearned model is a saved model or a checkpoint file, by default that of the workdir. Returns the
    contents of figures.json, see docs/concepts/evaluation.md.

    Raises:
      UserError: There is no model to evaluate, or the config is invalid.
    """
    folder = workdir / "evaluation"
    paths = {"original": original_path(config, workdir), "unlearned": unlearned or workdir / "unlearned"}

    def open_folder() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        claim(workdir)
        _check_models(paths, given=unlearned is not None)

    on_primary(open_folder)
    with barrier():
        evaluation = Evaluation(config, folder)
    results = {}
    for name, path in paths.items():  # one model in memory at a time
        with barrier():
            params = load_pretrained(path, config.family, config.model)
        results[name] = evaluation.evaluate(params, name)
        del params

    def write():
        weights = {name: original_weights(path) for name, path in paths.items()}
        report = tables.metrics_json(evaluation, results) | {
            "weights": weights,
            "config": config.describe("seed", "family", "model", "data", "evaluate"),
        }
        tables.write(folder, report, tables.format_models(report))
        for task in evaluation.inpainters if "clip" in evaluation.networks else ():
            from l2l_jax.report.plots import save_tsne  # matplotlib is slow to import

            save_tsne(folder / f"tsne_{task}.png", evaluation, list(results), task)
        return report

    return from_primary(write)


def _check_models(paths: Mapping[str, pathlib.Path], *, given: bool) -> None:
    """Raise a UserError unless both models exist; `given`: the unlearned model comes from a flag."""
    original, unlearned = paths.values()
    if not original.exists():
        raise UserError(
            f"There is no original model: {original} does not exist. Run `python -m l2l_jax.main` with this "
            "--config and --workdir first, or name the models with --config.model.pretrained and --unlearned."
        )
    if not unlearned.exists():
        name = f"--unlearned={unlearned}" if given else unlearned
        raise UserError(f"There is no unlearned model: {name} does not exist. Name it with --unlearned=PATH.")


def evaluate_folders(
    images: pathlib.Path, reference: pathlib.Path, folder: pathlib.Path, config: Config | None = None
) -> dict[str, Any]:
    """Compare the inpainted images of a folder with their originals; write `folder/figures.json`.

    `config.evaluate` selects the networks, and the config's training images train a classifier. Without a
    config, all published networks are used, and no classifier.

    Raises:
      UserError: A folder holds no images, or the file names do not match.
    """
    with barrier():
        inpainted, originals = open_images(images, "--images"), open_images(reference, "--reference")
        if config is None:
            every = EvaluationConfig(features="none", networks=get_args(NetworkName))
            (networks, missing), batch_size = open_networks(every), every.batch_size
        else:
            evaluation = Evaluation(config, folder)
            networks, missing = evaluation.networks, evaluation.missing
            batch_size = config.evaluate.batch_size
    result = compare_folders(inpainted, originals, networks, folder, batch_size=batch_size)
    report = {
        "images": {"folder": str(images), "count": len(inpainted.files)},
        "reference": {"folder": str(reference), "count": len(originals.files)},
        "figures": result.metrics,
        "intervals": result.intervals,
        "not_available": {**result.missing, **missing},
        "unreliable": result.unreliable,
        "networks": {name: dict(network.weights) for name, network in networks.items()},
    }
    on_primary(lambda: tables.write(folder, report, tables.format_folders(report)))
    return json.loads(json.dumps(report))
