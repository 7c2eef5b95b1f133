"""The program as two processes: one report, the figures of one process, one sentence for a mistake."""

import functools
import json
import operator
import re
import runpy

import jax
import pytest

from l2l_jax import experiment
from l2l_jax.config import parse_config
from tests.processes.forking import ROOT
from tests.processes.launching import run_processes

FIELDS = {
    "model.pretrained": "",
    "audit.enabled": False,
    "unlearn.retain_budget": 0.0,
    "model.width": 16, "model.depth": 1, "model.num_heads": 2, "model.decoder_width": 16,
    "model.decoder_depth": 1, "model.decoder_num_heads": 2, "pretrain.model.steps": 20,
    "pretrain.model.batch_size": 8, "pretrain.model.warmup_steps": 5, "unlearn.steps": 20,
    "unlearn.warmup_steps": 5, "unlearn.batch_size": 8, "evaluate.batch_size": 32,
    "evaluate.picture_per_class": 1,
    "data.train_per_class": 20, "data.test_per_class": 15,
}  # fmt: skip
RECIPE = "--config=configs/digits_mae.py:encoder"
SMALL = [RECIPE, *(f"--config.{name}={value}" for name, value in FIELDS.items())]


def config():
    """What the flags `SMALL` ask for."""
    recipe = runpy.run_path(str(ROOT / "configs" / "digits_mae.py"))["get_config"]("encoder")
    for name, value in FIELDS.items():
        *sections, field = name.split(".")
        functools.reduce(operator.getitem, sections, recipe)[field] = value
    return parse_config(recipe)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    ended = run_processes(2, "-m", "l2l_jax.main", *SMALL, f"--workdir={workdir}")
    assert [process.code for process in ended] == [0, 0], ended[0].errors + ended[1].errors
    return workdir, ended


@pytest.mark.slow
def test_one_process_logs_and_prints_the_table(finished):
    workdir, (first, second) = finished
    assert re.search(r"unlearn 20/20 .* loss ", first.errors)
    assert re.search("forget +unlearned", first.output)
    lines = (second.errors + second.output).splitlines()
    assert [line for line in lines if not line.startswith("[Gloo]")] == []
    assert not list(workdir.glob(".shared-*"))


@pytest.mark.slow
def test_figures_are_those_of_one_process(finished, monkeypatch):
    """The models of two processes, evaluated by them and by one; twice 75 images in batches of 32."""
    workdir, _ = finished
    several = json.loads((workdir / "report" / "metrics.json").read_text())
    devices = jax.local_devices()[:1]  # fewer compile faster
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    one = experiment.run(config(), workdir)
    for model in ("original", "unlearned"):
        for of in ("retain", "forget"):
            assert one[model][of] == pytest.approx(several[model][of], rel=1e-3)
    assert several["device"]["processes"] == 2 and one["device"]["processes"] == 1


@pytest.mark.slow
def test_a_mistake_of_all_is_told_once(tmp_path):
    flags = [SMALL[0], "--config.unlearn.alhpa=1", f"--workdir={tmp_path}"]
    ended = run_processes(2, "-m", "l2l_jax.main", *flags)
    assert [process.code for process in ended] == [1, 1]
    assert ended[0].errors.count("Error: The recipe has no field alhpa. Did you mean alpha?") == 1
    assert "Error" not in ended[1].errors
