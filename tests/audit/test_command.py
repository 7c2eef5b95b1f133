"""The command line of the audit."""

import json
import sys
from unittest import mock

import pytest
from absl import flags
from absl.testing import flagsaver

from l2l_jax.audit.__main__ import UNMET, main
from l2l_jax.errors import UserError
from l2l_jax.experiment import pipeline as experiment
from tests.audit.models import config

FIGURES = {"retain": {"mse": 0.1}, "forget": {"mse": 0.1}}


def result(finding):
    """A report as far as the console shows it."""
    mse = [0.1, 0.1, 0.1]
    models = {model: {"forget": {"mse": mse}} for model in ("original", "unlearned", "retrained")}
    compared = {
        "name": "no_attack", "title": "no attack", "measure": "error", "excess": 0.5, "low": 0.4, "high": 0.6,
        "margin": 0.1, "holds": False, "outcome": "more",
    }  # fmt: skip
    verdict = {
        "finding": finding, "title": "25 forget images, 50 steps", "attacks": 3, "comparison": compared,
        "unsettled_attacks": [], "little_to_forget": False, "images_needed": None,
    }  # fmt: skip
    audit = {
        "verdict": verdict, "reference": "retrained", "comparisons": [compared],
        "yardstick": {"seeds": None, "fair": True, "count": 1}, "cost": {"mse_ratio": [1.1, 1.0, 1.2]},
        "results": [{"name": "no_attack", "title": "no attack", "figures": models, "depth": {}}],
    }  # fmt: skip
    data = {"forget": ["5"], "retain": ["rest"]}
    classes = {"forget": ["5"], "retain": ["0", "1"]}
    models = {"original": FIGURES, "unlearned": FIGURES}
    return {**models, "audit": audit, "config": {"data": data}, "class_names": classes}


@pytest.fixture
def asked(monkeypatch):
    """What the audit was asked for; its verdict is "hidden"."""
    found = []

    def audit(*arguments):
        found.append(arguments)
        return result("hidden")

    monkeypatch.setattr(experiment, "audit", audit)
    return found


@flagsaver.flagsaver
def call(*arguments):
    flags.FLAGS.unparse_flags()  # of tests before this one
    with mock.patch.object(sys, "argv", ["audit", *arguments]):  # where fields to change are looked for
        return main(sys.argv)


def finished(folder):
    """A workdir as a finished run of the digits recipe leaves it, as far as the command reads it."""
    (folder / "report").mkdir()
    (folder / "unlearned").mkdir()
    described = config(retrained="", seeds=7).describe()
    (folder / "report" / "metrics.json").write_text(json.dumps({"config": described}))
    return folder


def test_a_finished_run_is_audited_as_it_was_made(asked, tmp_path, capsys):
    assert call(f"--workdir={finished(tmp_path)}") == 0
    ((settings, workdir, unlearned),) = asked
    assert (workdir, unlearned) == (tmp_path, tmp_path / "unlearned")
    assert settings.describe() == config(retrained="", seeds=7, enabled=True).describe()
    assert "one attack brings knowledge back (25 forget images, 50 steps)" in capsys.readouterr().out


@pytest.mark.parametrize(("required", "code"), [("forgotten", UNMET), ("hidden", 0)])
def test_the_exit_code_says_whether_the_verdict_is_the_one_required(asked, tmp_path, required, code):
    assert call(f"--workdir={finished(tmp_path)}", f"--require={required}") == code


def test_another_model_is_audited_with_its_recipe(asked, tmp_path):
    recipe = "--config=configs/digits_mae.py:encoder"
    arguments = [recipe, "--config.audit.fresh_decoder.steps=9", f"--workdir={tmp_path / 'new'}"]
    assert call(*arguments, f"--unlearned={tmp_path}") == 0
    ((settings, _, unlearned),) = asked
    assert settings.audit.fresh_decoder.steps == 9 and settings.audit.enabled and unlearned == tmp_path


def test_mistakes_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="--config is required"):
        call()
    with pytest.raises(UserError, match="holds no earlier run"):
        call(f"--workdir={tmp_path}")
    (finished(tmp_path) / "unlearned").rmdir()
    with pytest.raises(UserError, match="There is no unlearned model to audit: .*unlearned does not exist"):
        call(f"--workdir={tmp_path}")
    for content in ("{", '{"config": 3}', "[]"):
        (tmp_path / "report" / "metrics.json").write_text(content)
        with pytest.raises(UserError, match="is damaged"):
            call(f"--workdir={tmp_path}")
