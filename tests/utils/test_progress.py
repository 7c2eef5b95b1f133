"""Progress reporting on a terminal and in files."""

import io
import logging
import re
import subprocess
import sys

import pytest

from l2l_jax.utils import progress


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def lines(caplog):
    return [record.getMessage() for record in caplog.records]


def test_lines_show_rate_time_left_and_metrics(clock, caplog):
    """A step takes 2 s, the first 10 s more; lines are at least 10 s apart; the last is not repeated."""
    with caplog.at_level(logging.INFO, logger="l2l_jax"), progress.Progress("train", 11) as bar:
        for number in range(11):
            clock[0] += 12 if number == 0 else 2
            bar.update(1, {"loss": 0.5 - number / 100})
    assert lines(caplog) == [
        "train, step 1 of 11 · loss 0.5",
        "train, step 6 of 11 · 2.0 s/step · 10 s left · loss 0.45",
        "train 11/11 · 32 s · loss 0.4",
    ]


def test_rate_of_a_resumed_phase_uses_only_its_own_steps(clock, caplog):
    with caplog.at_level(logging.INFO, logger="l2l_jax"), progress.Progress("train", 10, 6) as bar:
        for _ in range(4):
            clock[0] += 500
            bar.update()
    assert lines(caplog)[1] == "train, step 8 of 10 · 500.0 s/step · 16 min 40 s left"
    assert caplog.records[-1].getMessage() == "train 10/10 · 33 min 20 s"


def test_nested_progress_has_no_lines(clock, caplog):
    with (
        caplog.at_level(logging.INFO, logger="l2l_jax"),
        progress.Progress("audit", 2, unit="attack") as outer,
    ):
        for _ in range(2):
            with progress.Progress("tune", 3) as inner:
                for _ in range(3):
                    clock[0] += 5
                    inner.update()
            outer.update()
    assert lines(caplog) == [
        "audit, attack 0 of 2 · tune 2/3",
        "audit, attack 1 of 2 · tune 1/3",
        "audit, attack 1 of 2 · tune 3/3",
        "audit 2/2 · 30 s",
    ]


def test_bar_is_replaced_by_a_summary_line(monkeypatch, caplog):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with caplog.at_level(logging.INFO, logger="l2l_jax"), progress.Progress("train", 300) as bar:
        for _ in range(300):
            bar.update(1, {"loss": 0.5})
    # The summary follows if a handler prints it to the terminal.
    bar_text, _, _ = terminal.getvalue().partition("train 300/300 · ")
    assert "train   0%|" in bar_text and "\n" not in bar_text and bar_text.endswith("\r")
    (line,) = lines(caplog)
    assert re.fullmatch(r"train 300/300 · \d+ s · loss 0.5", line)


@pytest.mark.parametrize(
    ("setup", "shown"),
    [
        ("", "train 1/1 · 0 s\n"),
        ("logging.getLogger('l2l_jax').setLevel(logging.WARNING)", ""),
        ("logging.basicConfig(level=logging.INFO, format='root: %(message)s')", "root: train 1/1 · 0 s\n"),
    ],
)
def test_progress_is_shown_unless_logging_is_configured(setup, shown):
    program = "from l2l_jax.utils.progress import Progress\nwith Progress('train', 1) as bar: bar.update()"
    command = [sys.executable, "-c", f"import logging\n{setup}\n{program}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", shown)


def test_write_errors_of_lines_are_ignored(monkeypatch):
    class Broken(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Broken())
    record = logging.LogRecord("l2l_jax", logging.INFO, __file__, 1, "a line", (), None)
    progress.LineHandler().emit(record)
