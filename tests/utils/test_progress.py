"""Progress where there is no terminal."""

import logging

import pytest

from l2l_jax.utils import progress


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_tell_rate_time_left_and_figures(clock, caplog):
    """A step takes 2 s, the first 10 s more; a line at most every 5 s."""
    with caplog.at_level(logging.INFO, logger="l2l_jax"), progress.Progress("train", 10) as bar:
        for number in range(10):
            clock[0] += 12 if number == 0 else 2
            bar.update(1, {"loss": 0.5 - number / 100})
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "train 1/10 · loss 0.5"
    assert lines[1] == "train 4/10 · 0.5 step/s · 12 s left · loss 0.47"
    assert lines[-1] == "train 10/10 · 0.5 step/s · 0 s left · loss 0.41"
    assert len(lines) == 5


def test_a_resumed_stage_counts_only_its_own_steps(clock, caplog):
    with caplog.at_level(logging.INFO, logger="l2l_jax"), progress.Progress("train", 10, 6) as bar:
        for _ in range(4):
            clock[0] += 5
            bar.update()
    assert caplog.records[-1].getMessage() == "train 10/10 · 0.2 step/s · 0 s left"
