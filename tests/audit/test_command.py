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
from tests.report.example import HIDDEN, report


@pytest.fixture
def asked(monkeypatch):
    """What the audit was asked for; its verdict is "hidden"."""
    audit = mock.Mock(return_value=report(HIDDEN))
    monkeypatch.setattr(experiment, "audit", audit)
    return audit


@flagsaver.flagsaver
def call(*arguments):
    flags.FLAGS.unparse_flags()  # of tests before this one
    with mock.patch.object(sys, "argv", ["audit", *arguments]):  # where fields to change are looked for
        return main(sys.argv)


def finished(folder):
    (folder / "report").mkdir()
    (folder / "unlearned").mkdir()
    described = config(retrained="", seeds=7).describe()
    (folder / "report" / "metrics.json").write_text(json.dumps({"config": described}))
    return folder


def test_a_finished_run_is_audited_as_it_was_made(asked, tmp_path, capsys):
    assert call(f"--workdir={finished(tmp_path)}") == 0
    settings, workdir, unlearned = asked.call_args.args
    assert (workdir, unlearned) == (tmp_path, tmp_path / "unlearned")
    assert settings.describe() == config(retrained="", seeds=7, enabled=True).describe()
    assert "one attack recovers knowledge (25 forget images, 50 steps)" in capsys.readouterr().out


@pytest.mark.parametrize(("required", "code"), [("forgotten", UNMET), ("hidden", 0)])
def test_the_exit_code_says_whether_the_verdict_is_the_one_required(asked, tmp_path, required, code):
    assert call(f"--workdir={finished(tmp_path)}", f"--require={required}") == code


def test_another_model_is_audited_with_its_config(asked, tmp_path):
    raw_config = "--config=configs/digits_mae.py:encoder"
    arguments = [raw_config, "--config.audit.fresh_decoder.steps=9", f"--workdir={tmp_path / 'new'}"]
    assert call(*arguments, f"--unlearned={tmp_path}") == 0
    settings, _, unlearned = asked.call_args.args
    assert settings.audit.fresh_decoder.steps == 9 and settings.audit.enabled and unlearned == tmp_path


def test_mistakes_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="--config is required"):
        call()
    finished(tmp_path)
    for content in ("{", '{"config": 3}', "[]"):
        (tmp_path / "report" / "metrics.json").write_text(content)
        with pytest.raises(UserError, match="is damaged"):
            call(f"--workdir={tmp_path}")
