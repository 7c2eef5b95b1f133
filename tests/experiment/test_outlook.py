"""Announcements and checks before a run starts."""

import logging

import pytest

from l2l_jax.audit.run import Audit
from l2l_jax.errors import UserError
from l2l_jax.evals.evaluator import Evaluation
from l2l_jax.experiment.outlook import Outlook
from l2l_jax.experiment.phase import training_sets
from l2l_jax.experiment.workdir import Workdir
from tests.fixtures.configs import digits_config


def announced(folder, **fields):
    config = digits_config({"audit.retrained": "train", "model.pretrained": "", **fields})
    folders = Workdir(folder, config)
    evaluation = Evaluation(config, folders.evaluation)
    auditor = Audit(config, evaluation, training_sets(config, evaluation.train), folders.audit)
    outlook = Outlook(config, folders, evaluation, auditor)
    outlook.announce()
    return outlook


def test_phases_are_announced_with_their_lengths(tmp_path, caplog):
    fields = {"pretrain.model.steps": 1000, "unlearn.method": "epsilon", "audit.attacks": "linear_probe"}
    caplog.set_level(logging.INFO, logger="l2l_jax")
    announced(tmp_path, **fields, **{"unlearn.steps": 300, "unlearn.batch_size": 32})
    (text,) = (r.getMessage() for r in caplog.records if "Ctrl-C is safe" in r.getMessage())
    lines = text.splitlines()
    assert lines[0] == f"In {tmp_path}:"
    assert [line.strip().partition(". ")[2] for line in lines[1:-2]] == [
        "train the original model, model: 1,000 steps of 64 images of each set",
        "unlearn, phase_1a: 300 steps of 32 images of each set",
        "unlearn, phase_1b: 300 steps of 32 images of each set",
        "unlearn, method epsilon: 300 steps of 32 images of each set",
        "train the retrained model without the forget images: 1,200 to 5,200 steps",
        "evaluate 3 models on 450 test images",
    ]
    assert lines[-2].endswith("audit: 1 attack on each of 3 models")
    announced(tmp_path, **fields, **{"audit.retrained": ()})
    assert "evaluate 2 models on 450 test images" in caplog.text
    assert "audit: 1 attack on each of 2 models" in caplog.text


def test_early_errors_and_announcement_of_missing_weights(tmp_path, caplog, monkeypatch):
    with pytest.raises(UserError, match="shots"):
        announced(tmp_path / "shots", **{"audit.relearning": {"shots": (100_000,)}})
    with pytest.raises(UserError, match="config.evaluate.inception=nowhere does not exist"):
        announced(tmp_path / "w", **{"evaluate.networks": ("inception",), "evaluate.inception": "nowhere"})
    monkeypatch.setenv("L2L_JAX_WEIGHTS", str(tmp_path))
    announced(tmp_path / "run", **{"evaluate.networks": ("inception", "clip")})
    assert "Metrics of inception and clip will be missing" in caplog.text


def test_duration_estimates_use_the_images_of_each_phase(tmp_path):
    raw_config = {"pretrain.model.steps": 1000, "audit.attacks": "retain_tuning", "unlearn.steps": 300}
    attack = {"audit.retain_tuning": {"steps": 10, "batch_size": 4}}
    outlook = announced(tmp_path, **raw_config, **attack, **{"unlearn.batch_size": 32})
    estimate = outlook.estimate(0.5)
    validation, test, models = 100, 224, 3  # forget images, of 450 test images
    measured = 4 * (validation + test)  # after 10, 5, 2 and 1 steps
    assert estimate == {
        "pretraining, model": 0.5 * 1000 * 64,
        "unlearning": 0.5 * 300 * 32 * 2,
        "retraining at least": pytest.approx(0.5 * 1.2 * 1000 * 64),
        "evaluation": pytest.approx(0.5 / 3 * models * 450),
        "audit": pytest.approx(0.5 * models * (10 * 4 + measured / 3)),
    }
