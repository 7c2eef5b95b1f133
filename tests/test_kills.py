"""Killing processes of a run at random: three times, and twenty times with `-m soak`."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest

from l2l_jax.training.metric_writers import read_metrics
from tests.matrix import soak
from tests.processes.forking import ROOT
from tests.processes.launching import ENVIRONMENT, run_processes

SMALL = [
    "--config=configs/digits_mae.py:encoder", "--config.model.pretrained=",
    "--config.audit.enabled=False", "--config.unlearn.retain_budget=0",
    "--config.data.test_per_class=4", "--config.evaluate.features=none",
    "--config.evaluate.picture_per_class=1",
    "--config.model.width=16", "--config.model.depth=1",
    "--config.model.decoder_width=16", "--config.model.decoder_depth=1", "--config.model.num_heads=2",
    "--config.pretrain.model.batch_size=8", "--config.pretrain.model.warmup_steps=2",
    "--config.pretrain.model.checkpoint_every=4", "--config.pretrain.model.log_every=1",
    "--config.unlearn.warmup_steps=2", "--config.unlearn.batch_size=8",
    "--config.unlearn.checkpoint_every=4", "--config.unlearn.log_every=1",
]  # fmt: skip


def steps(kills):
    """Steps of each of the two stages: of both, eight for a kill."""
    return 4 * kills


def program(workdir, kills):
    """What Python is given to run it."""
    stages = [f"--config.{stage}.steps={steps(kills)}" for stage in ("pretrain.model", "unlearn")]
    return ["-m", "l2l_jax.main", *SMALL, f"--workdir={workdir}", *stages]


def start(workdir, log, kills):
    """The run as two processes under the launcher, which starts both again when one ends."""
    return subprocess.Popen(
        [sys.executable, "launch/local.py", "--processes=2", f"--max-restarts={kills}", "--grace=0.3",
         "--", sys.executable, *program(workdir, kills)],
        cwd=ROOT, env=ENVIRONMENT, stdout=log, stderr=log,
    )  # fmt: skip


def children(launcher):
    """Process ids of the run's processes, from /proc."""
    listed = pathlib.Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text()
    return [int(pid) for pid in listed.split()]


def progress(workdir, kills):
    """Steps done by the last line of the scalars, over both stages."""
    stages = {workdir / "pretrain" / "model": 0, workdir / "unlearn": steps(kills)}
    rows = [(before, read_metrics(folder)) for folder, before in stages.items() if folder.exists()]
    return max((before + row[-1]["step"] for before, row in rows if row), default=0)


def parameters(folder):
    restored = ocp.PyTreeCheckpointer().restore(folder / "params")
    import jax

    return jax.tree.leaves(restored)


@pytest.fixture
def quiet(kills, tmp_path):
    """A run that nobody disturbs."""
    ended = run_processes(2, *program(tmp_path / "quiet", kills), timeout=900)
    assert [process.code for process in ended] == [0, 0], ended[0].errors[-3000:]
    return tmp_path / "quiet"


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
@pytest.mark.parametrize("kills", [3, soak(20)])
def test_kills_leave_no_trace_in_the_parameters(kills, quiet, tmp_path):
    """With three: in pretraining, some time after a start, in unlearning; with twenty the same more often."""
    draw = random.Random(kills)
    # A kill is due when the run has come to a step, one in each equal part of the run, or, every third time,
    # some time after a start.
    part = (2 * steps(kills) - 3) / kills
    due = [int(part * index) + draw.randrange(1, int(part)) for index in range(kills)]
    log_path, workdir = tmp_path / "killed.log", tmp_path / "killed"
    with log_path.open("w") as log:
        launcher = start(workdir, log, kills)
        try:
            for killed, step in enumerate(due):
                wait_until_due(launcher, workdir, kills, step, killed % 3 == 1, draw)
                os.kill(draw.choice(children(launcher)), signal.SIGKILL)
                wait_for_restart(launcher, log_path, killed + 1)
            assert launcher.wait(timeout=900) == 0, log_path.read_text()[-3000:]
        finally:
            launcher.terminate()
            launcher.wait(timeout=60)
    assert log_path.read_text().count("[launch] starting all again") == kills
    for model in ("pretrained", "unlearned"):
        expected, found = (parameters(run / model) for run in (quiet, workdir))
        assert len(expected) == len(found) > 10
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_array_equal(a, b)
    expected, found = (json.loads((run / "report" / "metrics.json").read_text()) for run in (quiet, workdir))
    assert found["unlearned"] == expected["unlearned"] and found["original"] == expected["original"]
    for stage in ("pretrain/model", "unlearn"):
        assert read_metrics(workdir / stage) == read_metrics(quiet / stage)


def wait_until_due(launcher, workdir, kills, step, early, draw):
    """Until both processes run and the step is reached or, if `early`, for a random while after a start."""
    deadline = time.monotonic() + 600
    enough = time.monotonic() + draw.uniform(0.0, 4.0)
    while len(children(launcher)) < 2 or not (
        time.monotonic() > enough if early else progress(workdir, kills) >= step
    ):
        assert launcher.poll() is None, "the run has ended before it was killed often enough"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(draw.uniform(0.0, 0.05))  # somewhere in a step, or in a checkpoint


def wait_for_restart(launcher, log_path, times):
    deadline = time.monotonic() + 600
    while log_path.read_text().count("[launch] starting all again") < times:
        assert launcher.poll() is None, log_path.read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)
