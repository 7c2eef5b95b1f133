"""Make the shipped models of a config: `python -m tools.make_shipped --config=configs/fashion_mae.py`.

Trains the model on all classes, a model without the classes to forget, and writes both with their cards into
this package. `--workdir` keeps the checkpoints: an interrupted call resumes. Models of Fashion-MNIST are
trained on all 60,000 training images, of which the package has a subset: see `IDX_FOLDER`.
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
"""Folder of the whole Fashion-MNIST, where Debian's package dataset-fashion-mnist installs it."""

FASHION_LENGTHS = (0.6, 1.0, 1.6)
"""Lengths of retraining on half of the classes, see `l2l_jax.experiment.pretrain.LENGTHS`; half the length
shows each image as often as the original saw it."""


def main(argv: Sequence[str]) -> None:
    """Train, write and describe both models of the config."""
    raw, workdir = parse_flags(argv)
    from l2l_jax import shipped
    from l2l_jax.data.sources import open_source
    from l2l_jax.experiment.pretrain import pretrain, retrain

    config = dataclasses.replace(load_config(raw), pretrained="")
    name = run_name(CONFIG.value)
    whole, lengths = training_images(config)
    source = whole or open_source(config.data, "train", config.model.image_size)
    original = pretrain(config, workdir / "original", source)
    seen = {"validation_images": "seen in training" if whole else "held out"}
    _ship(config, name, original, {"trained_on": "all classes", **seen, "length": 1.0})
    retrained = retrain(config, original, workdir / "retrained", lengths, whole)
    facts = {
        "trained_on": "the classes to retain",
        **seen,
        "length": retrained.length,
        "retain_validation_error_ratio": round(retrained.ratio, 4),
    }
    _ship(config, name + shipped.RETRAINED, retrained.params, facts)


def training_images(config: Any) -> tuple[Any, Sequence[float]]:
    """Return the training images of all classes, None for those of the config, and lengths of retraining."""
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
    for figures, model in (
        ("test_metrics", load_pretrained(path, config.family, config.model)),
        ("test_metrics_float32", params),
    ):
        card[figures] = evaluation.evaluate(model, name).metrics
    described.write_text(json.dumps(card, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(run_program(main, sys.argv))
