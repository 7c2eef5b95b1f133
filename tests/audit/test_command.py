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
    """Record the arguments of the audit; its verdict is "hidden"."""
    audit = mock.Mock(return_value=report(HIDDEN))
    monkeypatch.setattr(experiment, "audit", audit)
    return audit


@flagsaver.flagsaver
def call(*arguments):
    flags.FLAGS.unparse_flags()  # discard flags of previous tests
    with mock.patch.object(sys, "argv", ["audit", *arguments]):  # overridden fields are read from sys.argv
        return main(sys.argv)


def finished(folder):
    (folder / "report").mkdir()
    (folder / "unlearned").mkdir()
    described = config(retrained="", seeds=7).describe()
    (folder / "report" / "metrics.json").write_text(json.dumps({"config": described}))
    return folder


def test_finished_run_is_audited_with_its_config(asked, tmp_path, capsys):
    assert call(f"--workdir={finished(tmp_path)}") == 0
    settings, workdir, unlearned = asked.call_args.args
    assert (workdir, unlearned) == (tmp_path, tmp_path / "unlearned")
    assert settings.describe() == config(retrained="", seeds=7, enabled=True).describe()
    assert "one attack recovers knowledge (25 forget images, 50 steps)" in capsys.readouterr().out


@pytest.mark.parametrize(("required", "code"), [("forgotten", UNMET), ("hidden", 0)])
def test_exit_code_reflects_the_required_verdict(asked, tmp_path, required, code):
    assert call(f"--workdir={finished(tmp_path)}", f"--require={required}") == code


def test_other_model_is_audited_with_its_config(asked, tmp_path):
    raw_config = "--config=configs/digits_mae.py:encoder"
    arguments = [raw_config, "--config.audit.fresh_decoder.steps=9", f"--workdir={tmp_path / 'new'}"]
    assert call(*arguments, f"--unlearned={tmp_path}") == 0
    settings, _, unlearned = asked.call_args.args
    assert settings.audit.fresh_decoder.steps == 9 and settings.audit.enabled and unlearned == tmp_path


def test_invalid_arguments_raise_user_errors(tmp_path):
    with pytest.raises(UserError, match="--config is required"):
        call()
    finished(tmp_path)
    for content in ("{", '{"config": 3}', "[]"):
        (tmp_path / "report" / "metrics.json").write_text(content)
        with pytest.raises(UserError, match="is damaged"):
            call(f"--workdir={tmp_path}")
