"""The program as two processes: one report, the metrics of one process, one error message for a mistake; and,
with `-m soak`, twenty random kills."""

import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from l2l_jax.config import parse_config
from l2l_jax.config_files import override, read_config
from l2l_jax.experiment import pipeline as experiment
from l2l_jax.report import write
from l2l_jax.train.hooks import read_metrics
from l2l_jax.weights.saved_models import save_model
from tests.train.families import params_of
from tests.utils.forking import ROOT
from tests.utils.launching import ENVIRONMENT, run_processes

STEPS = 4

KILLS, MANY = 20, 80
"""Number of kills of a run, each of which starts Python two more times, and steps per phase."""

CONFIG = "--config=configs/digits_mae.py:encoder"
TRAINING = dict(batch_size=8, warmup_steps=2, checkpoint_every=5, log_every=1)
MODEL = dict(width=16, depth=1, num_heads=2, decoder_width=16, decoder_depth=1, decoder_num_heads=2)
SECTIONS = {
    "audit": dict(enabled=False),
    "data": dict(train_per_class=20, test_per_class=9),
    "evaluate": dict(batch_size=32, picture_per_class=1, features="none"),
    "pretrain.model": TRAINING | dict(steps=MANY),
    "unlearn": TRAINING | dict(retain_budget=0.0),
    "model": MODEL,
}


def fields(steps, pretrained=""):
    flags = {
        f"{name}.{field}": value for name, section in SECTIONS.items() for field, value in section.items()
    }
    return flags | {"unlearn.steps": steps, "model.pretrained": str(pretrained)}


def program(workdir, steps, pretrained=""):
    flags = [f"--config.{name}={value}" for name, value in fields(steps, pretrained).items()]
    return ["-m", "l2l_jax.main", CONFIG, *flags, f"--workdir={workdir}"]


def config(pretrained=""):
    return parse_config(override(read_config("digits_mae:encoder"), fields(STEPS, pretrained)))


def finished_run(workdir, steps=STEPS, pretrained=""):
    """An undisturbed run of two processes, and the files they leave."""
    ended = run_processes(2, *program(workdir, steps, pretrained), timeout=900)
    assert [process.code for process in ended] == [0, 0], ended[0].errors + ended[1].errors
    return workdir, ended


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder, unlearned = tmp_path_factory.mktemp("given") / "model", config()
    save_model(folder, params_of(unlearned.model), unlearned.describe("family", "model"))
    return folder


@pytest.fixture(scope="module")
def finished(given, tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("run"), pretrained=given)


@pytest.mark.slow
def test_one_process_logs_and_prints_the_table(finished):
    workdir, (first, second) = finished
    assert re.search(r"unlearn 4/4 .* loss ", first.errors)
    assert re.search("forget +unlearned", first.output)
    lines = (second.errors + second.output).splitlines()
    assert [line for line in lines if not line.startswith("[Gloo]")] == []
    assert not list(workdir.glob(".shared-*"))


@pytest.mark.slow
def test_metrics_match_those_of_one_process(finished, given, one_device, tmp_path, monkeypatch):
    """The models of two processes, evaluated by two and by one; twice 45 images in batches of 32."""
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    several = json.loads((workdir / "report" / "metrics.json").read_text())
    monkeypatch.setattr(write, "draw", lambda *_: {})  # drawn by the two processes
    monkeypatch.setattr(write, "page", lambda *_: "")
    one = experiment.run(config(given), workdir)
    for model in ("original", "unlearned"):
        for split in ("retain", "forget"):
            assert one[model][split] == pytest.approx(several[model][split], rel=1e-3)
    assert several["device"]["processes"] == 2 and one["device"]["processes"] == 1


@pytest.mark.slow
def test_common_error_is_reported_once(tmp_path):
    ended = run_processes(
        2, "-m", "l2l_jax.main", CONFIG, "--config.unlearn.alhpa=1", f"--workdir={tmp_path}"
    )
    assert [process.code for process in ended] == [1, 1]
    sentence = "Error: config.unlearn.alhpa does not exist. Did you mean config.unlearn.alpha?"
    assert ended[0].errors.count(sentence) == 1 and "Error" not in ended[1].errors


def start(workdir, log):
    """Start the run as two processes under the launcher, which restarts both when one ends."""
    launcher = [sys.executable, "launch/local.py", "--processes=2", f"--max-restarts={KILLS}", "--grace=0.3"]
    command = [*launcher, "--", sys.executable, *program(workdir, MANY)]
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=log, stderr=log)


def children(launcher):
    """Return the ids of the run's processes, from /proc."""
    listed = pathlib.Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text(encoding="utf-8")
    return [int(pid) for pid in listed.split()]


def progress(workdir):
    """Return the finished steps over both phases, from the last line of the scalars."""
    stages = {workdir / "pretrain" / "model": 0, workdir / "unlearn": MANY}
    rows = [(before, read_metrics(folder)) for folder, before in stages.items() if folder.exists()]
    return max((before + row[-1]["step"] for before, row in rows if row), default=0)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
@pytest.mark.soak  # test_several_processes.py kills a training process in every run
def test_parameters_do_not_depend_on_kills(tmp_path):
    """Kills in both phases, and at random times after a start."""
    quiet, draw = finished_run(tmp_path / "quiet", MANY)[0], random.Random(KILLS)
    # A kill happens at a step in each of equal parts of the run or, every third time,
    # at a random time after a start.
    part = (2 * MANY - 3) / KILLS
    due = [int(part * index) + draw.randrange(1, int(part)) for index in range(KILLS)]
    log_path, workdir = tmp_path / "killed.log", tmp_path / "killed"

    def restarts():
        return log_path.read_text().count("[launch] starting all again")

    def until(condition):
        deadline = time.monotonic() + 600
        while not condition():
            assert launcher.poll() is None, log_path.read_text()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.01)

    with log_path.open("w") as log:
        launcher = start(workdir, log)
        try:
            for killed, step in enumerate(due):
                until(lambda: len(children(launcher)) == 2)
                if killed % 3 == 1:
                    time.sleep(draw.uniform(0.0, 4.0))
                else:
                    until(lambda step=step: progress(workdir) >= step)
                time.sleep(draw.uniform(0.0, 0.05))  # somewhere within a step or a checkpoint
                os.kill(draw.choice(children(launcher)), signal.SIGKILL)
                until(lambda killed=killed: restarts() > killed)
            assert launcher.wait(timeout=900) == 0, log_path.read_text()[-3000:]
        finally:
            launcher.terminate()
            launcher.wait(timeout=60)
    assert restarts() == KILLS
    for model in ("pretrained", "unlearned"):
        folders = (run / model / "params" for run in (quiet, workdir))
        expected, actual = (jax.tree.leaves(ocp.PyTreeCheckpointer().restore(folder)) for folder in folders)
        assert len(expected) == len(actual) > 10
        for a, b in zip(expected, actual, strict=True):
            np.testing.assert_array_equal(a, b)
    expected, actual = (json.loads((run / "report" / "metrics.json").read_text()) for run in (quiet, workdir))
    assert actual["unlearned"] == expected["unlearned"] and actual["original"] == expected["original"]
    for stage in ("pretrain/model", "unlearn"):
        assert read_metrics(workdir / stage) == read_metrics(quiet / stage)
