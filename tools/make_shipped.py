"""Create the shipped models of a config: `python -m tools.make_shipped --config=configs/fashion_mae.py`.

Trains a model on all classes and a model without the classes to forget, and writes both with their metadata
into this package. Checkpoints are kept in `--workdir`; rerun the command to resume. Models of Fashion-MNIST
are trained on all 60,000 training images, of which the package has a subset; see `IDX_FOLDER`.
"""

import dataclasses
import json
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from l2l_jax.cli.common import CONFIG, load_config, parse_flags, run_program
from l2l_jax.config_files import run_name

IDX_FOLDER = "/usr/share/datasets/fashion-mnist"
"""Folder of the complete Fashion-MNIST, as installed by Debian's package dataset-fashion-mnist."""

FASHION_LENGTHS = (0.6, 1.0, 1.6)
"""Lengths of retraining on half of the classes, see `l2l_jax.experiment.pretrain.LENGTHS`. With half the
length, each image is used as often as in the original training."""


def main(argv: Sequence[str]) -> None:
    """Train both models of the config, and write them with their metadata."""
    raw, workdir = parse_flags(argv)
    from l2l_jax import shipped
    from l2l_jax.data.sources import open_source
    from l2l_jax.experiment.pretrain import pretrain, retrain

    config = dataclasses.replace(load_config(raw), pretrained="")
    name = run_name(CONFIG.value)
    complete, lengths = training_images(config)
    source = complete or open_source(config.data, "train", config.model.image_size)
    original = pretrain(config, workdir / "original", source)
    validation = {"validation_images": "seen in training" if complete else "held out"}
    _ship(config, name, original, {"trained_on": "all classes", **validation, "length": 1.0})
    retrained = retrain(config, original, workdir / "retrained", lengths, complete)
    facts = {
        "trained_on": "the classes to retain",
        **validation,
        "length": retrained.length,
        "retain_validation_error_ratio": round(retrained.ratio, 4),
    }
    _ship(config, name + shipped.RETRAINED, retrained.params, facts)


def training_images(config: Any) -> tuple[Any, Sequence[float]]:
    """Return the training images of all classes (None: as in the config) and the lengths of retraining."""
    from etils import epath

    from l2l_jax.data.arrays import FASHION_CLASSES, read_idx_split
    from l2l_jax.data.records import ArraySource
    from l2l_jax.experiment.pretrain import LENGTHS

    if config.data.source != "fashion":
        return None, LENGTHS
    return ArraySource(
        *read_idx_split(epath.Path(IDX_FOLDER), "train"), FASHION_CLASSES, "train"
    ), FASHION_LENGTHS


def _ship(config: Any, name: str, params: Any, facts: dict[str, Any]) -> None:
    from l2l_jax import shipped
    from l2l_jax.evals.evaluator import Evaluation
    from l2l_jax.weights.loading import load_pretrained
    from l2l_jax.weights.reading import sha256
    from l2l_jax.weights.saved_models import save_model
    from l2l_jax.weights.transfer import export_model

    path = shipped.FOLDER / f"{name}.safetensors"
    path.unlink(missing_ok=True)
    saved = pathlib.Path("runs") / "shipped" / name
    save_model(saved, params, {**config.describe("family", "model", "data", "seed"), "origin": name})
    export_model(saved, path, "float16")
    card = {
        "name": name,
        **facts,
        **config.describe("family", "model", "data", "pretrain", "seed"),
        "commit": subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip(),
        "sha256": sha256(path),
        "licence": "Apache-2.0",
    }
    described = path.with_suffix(".json")
    described.write_text(json.dumps(card))
    evaluation = Evaluation(config, pathlib.Path("runs") / "shipped" / "evaluation")
    for key, model in (
        ("test_metrics", load_pretrained(path, config.family, config.model)),
        ("test_metrics_float32", params),
    ):
        card[key] = evaluation.evaluate(model, name).metrics
    described.write_text(json.dumps(card, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv))
