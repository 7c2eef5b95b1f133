"""Runs of 1, 2 and 4 real processes on this machine: equal results, shared checkpoints, no hanging."""

import functools
import json
import re
import shutil
import signal

import jax
import numpy as np
import pytest

from l2l_jax.errors import Interrupted
from l2l_jax.train.hooks import read_metrics
from l2l_jax.utils.distributed import LOST
from tests import worker as scenarios
from tests.matrix import soak
from tests.utils.launching import worker

TOLERANCE = 2e-5
"""Maximum difference of parameters of size 1 after 12 AdamW steps with sums in a different order."""


JAX_ENDS_WITH = (-signal.SIGABRT, 1)
"""Exit codes when JAX itself detects that another process is lost; 1 before 0.9.2."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Parameters and metrics of an uninterrupted run in this process, on one device."""
    folder = tmp_path_factory.mktemp("alone")
    return scenarios.train(folder), read_metrics(folder)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run of 2 processes, one of which got SIGTERM in its fourth step."""
    folder = tmp_path_factory.mktemp("stopped")
    return folder, worker(2, "terminated", folder)


def assert_same_run(folder, params, alone):
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=TOLERANCE)
    jax.tree.map(close, params, alone[0])
    rows = read_metrics(folder)
    assert [row["step"] for row in rows] == list(range(1, scenarios.STEPS + 1))  # no duplicates, none missing
    for row, expected in zip(rows, alone[1], strict=True):
        assert row == pytest.approx(expected, rel=1e-3)


def kept(folder, count, like):
    """Return the final parameters of each of `count` processes."""
    kept = [np.load(folder / f"params_{index}.npz") for index in range(count)]
    for other in kept[1:]:
        jax.tree.map(np.testing.assert_array_equal, dict(other), dict(kept[0]))
    return jax.tree.unflatten(jax.tree.structure(like), list(kept[0].values()))


@pytest.mark.slow
def test_sigterm_to_one_process_stops_all_after_the_same_step(stopped):
    folder, ended = stopped
    assert [process.code for process in ended] == [128 + signal.SIGTERM] * 2
    # The signal arrives before the fourth step and is exchanged after it; the result is read after the fifth.
    assert "SIGTERM: stopped after step 5; the state is saved" in ended[0].errors
    assert (folder / "checkpoints" / "5").is_dir()
    assert len(read_metrics(folder)) == 5
    assert json.loads((folder / "checkpoints" / "5" / "data" / "metadata").read_text())["devices"] == {
        "processes": 2,
        "devices": 2,
        "parts": 1,
    }
    assert_silent(stopped[1][1:])


def assert_silent(processes):
    for process in processes:
        lines = (process.errors + process.output).splitlines()
        assert [line for line in lines if not line.startswith("[Gloo]")] == []


@pytest.mark.slow
@pytest.mark.parametrize(("middle", "last"), [(2, 1), soak(4, 1), soak(4, 2)])
def test_restore_checkpoints_of_other_process_counts(stopped, alone, tmp_path, middle, last):
    """2 processes stop after step 5, 2 or 4 after step 10, others finish: the results match one process.

    Parameters are first replicated, then split over two processes, a mesh of 2x2, or two devices.
    """
    shutil.copytree(stopped[0], tmp_path / "run")
    ended = worker(middle, "sharded_terminated", tmp_path / "run")
    assert [process.code for process in ended] == [128 + signal.SIGTERM] * middle
    assert f"resumes on {middle} devices of {middle} processes" in ended[0].errors
    assert "resuming after step 5" in ended[0].errors and "stopped after step 10" in ended[0].errors
    assert_silent(ended[1:])
    if last == 1:
        params = scenarios.train(tmp_path / "run", ways=2)
    else:
        ended = worker(2, "sharded", tmp_path / "run")
        assert [process.code for process in ended] == [0, 0], ended[0].errors
        params = kept(tmp_path / "run", 2, alone[0])
    assert_same_run(tmp_path / "run", params, alone)


@pytest.mark.parametrize("first", [soak(1), soak(2)])
def test_processes_agree_on_the_retain_budget(tmp_path, first):
    """One process stops, 2 resume under `pmap`. In every run, train/test_budget.py uses several devices."""
    (tmp_path / "alone").mkdir()
    alone = scenarios.train(tmp_path / "alone", budgeted=True), read_metrics(tmp_path / "alone")
    assert len({row["alpha"] for row in alone[1]}) > 2
    if first == 1:
        with pytest.raises(Interrupted):
            scenarios.train(tmp_path / "run", 0, 4, signal.SIGTERM, budgeted=True)
    else:
        ended = worker(2, "budgeted_mapped_terminated", tmp_path / "run")
        assert [process.code for process in ended] == [128 + signal.SIGTERM] * 2, ended[0].errors
    ended = worker(2, "budgeted_mapped", tmp_path / "run")
    assert [process.code for process in ended] == [0, 0], ended[0].errors
    moved = "1 devices of 1 processes; it resumes on 2 devices of 2 processes" in ended[0].errors
    assert moved == (first == 1)
    assert_same_run(tmp_path / "run", kept(tmp_path / "run", 2, alone[0]), alone)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["killed", soak("killed_first")])
def test_killed_process_ends_the_other_and_the_run_resumes(scenario, stopped, alone, tmp_path):
    """Killed in step 7, it resumes after step 5, here on one device; launch/test_local.py covers restarts."""
    first = scenario == "killed_first"
    folder = shutil.copytree(stopped[0], tmp_path / "run")
    ended = worker(2, scenario, folder, timeout=120)
    victim, other = ended if first else ended[::-1]
    assert victim.code == -signal.SIGKILL
    # The broken connection is detected either by the program or by JAX, which then aborts.
    if other.code == LOST:
        assert "Error: Another process of this run has ended" in other.errors
    else:
        assert first and other.code in JAX_ENDS_WITH
        assert "another task died" in other.errors
    assert "Traceback" not in other.errors
    assert_same_run(folder, scenarios.train(folder), alone)


@pytest.mark.slow
def test_hanging_process_ends_the_other_within_the_heartbeat_timeout(tmp_path):
    ended = worker(2, "frozen", tmp_path, flags=["--heartbeat_timeout=5"], frozen=1, timeout=120)
    assert ended[0].code in JAX_ENDS_WITH
    assert "stopped sending heartbeats" in ended[0].errors


@pytest.mark.slow
def test_inconsistency_between_processes_is_reported_once(tmp_path):
    """Process 0 has an invalid file of weights, which is not read because process 1 lacks it."""
    ended = worker(2, "disagreeing", tmp_path)
    assert [process.code for process in ended] == [1, 1]
    pattern = r"Error: Process 1 of 2: --workdir=.*/1 is not the same folder here as in process 0"
    assert re.match(pattern, ended[0].errors.splitlines()[-1])
    assert "Error" not in ended[1].errors
    for index in range(2):
        opened = np.load(tmp_path / str(index) / "opened.npz")
        assert opened["networks"] == 0 and "not available" in str(opened["missing"])
