"""The local launcher with small programs in place of l2l_jax.main."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest

LAUNCHER = pathlib.Path(__file__).parents[2] / "launch" / "local.py"

PROGRAM = """
import os, pathlib, signal, sys, time
flags = dict(argument.lstrip("-").split("=") for argument in sys.argv[2:])
folder, index = pathlib.Path(sys.argv[1]), int(flags["process_id"])
with (folder / f"starts_{index}").open("a") as file:
    file.write(flags["coordinator"] + " " + flags["num_processes"] + "\\n")
starts = len((folder / f"starts_{index}").read_text().splitlines())
"""


def launch(tmp_path, body, *options, processes=2):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM + body)
    return subprocess.Popen(
        [
            sys.executable,
            LAUNCHER,
            f"--processes={processes}",
            *options,
            "--",
            sys.executable,
            program,
            tmp_path,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


def starts(tmp_path, index):
    return (tmp_path / f"starts_{index}").read_text().splitlines()


def test_processes_are_numbered_and_share_a_coordinator(tmp_path):
    body = (
        "time.sleep(index / 4)\n"  # a process that finishes early does not end the others
        "print('out', index)\nprint('err', index, file=sys.stderr)\nprint(os.environ['XLA_FLAGS'])"
    )
    code, output, errors = finish(launch(tmp_path, body, "--cpu-devices=3", "--grace=0.1", processes=3))
    assert code == 0
    for index in range(3):
        assert f"[{index}] out {index}\n" in output and f"[{index}] err {index}\n" in errors
        assert f"[{index}] " in output and "device_count=3" in output
    (meeting,) = {line for index in range(3) for line in starts(tmp_path, index)}
    assert meeting.startswith("127.0.0.1:") and meeting.endswith(" 3")


def test_all_processes_restart_when_one_is_killed(tmp_path):
    body = "if starts == index == 1: os.kill(os.getpid(), signal.SIGKILL)\nif starts == 1: time.sleep(60)"
    code, _, errors = finish(launch(tmp_path, body, "--max-restarts=2", "--grace=0.2"))
    assert code == 0
    assert [len(starts(tmp_path, index)) for index in (0, 1)] == [2, 2]
    assert "[launch] process 1 ended with SIGKILL" in errors
    assert "[launch] killing process 0: still there after 0.2 s" in errors


@pytest.mark.parametrize(("exit_code", "times"), [(75, 3), (143, 3), (2, 1)])
def test_permanent_errors_are_not_restarted(tmp_path, exit_code, times):
    code, _, _ = finish(launch(tmp_path, f"sys.exit({exit_code})", "--max-restarts=2"))
    assert code == exit_code and len(starts(tmp_path, 0)) == times


@pytest.mark.parametrize(("first", "later", "times"), [(1, 75, 1), (75, 1, 3)])
def test_exit_code_is_that_of_the_first_failed_process(tmp_path, first, later, times):
    """The others only detect the failure; JAX before 0.9.2 ends them with 1."""
    body = f"sys.exit({first}) if index == 0 else (time.sleep(0.5), sys.exit({later}))"
    code, _, _ = finish(launch(tmp_path, body, "--max-restarts=2"))
    assert code == first and len(starts(tmp_path, 0)) == times


SAVING = """
def save(number, frame):
    (folder / f"saved_{index}").touch()
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, save)
(folder / f"ready_{index}").touch()
time.sleep(60)
"""


def wait_for_both(tmp_path, name):
    deadline = time.monotonic() + 60
    while not all((tmp_path / f"{name}_{index}").exists() for index in (0, 1)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_signal_is_forwarded_and_ends_the_run(tmp_path):
    process = launch(tmp_path, SAVING, "--max-restarts=2")
    wait_for_both(tmp_path, "ready")
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 128 + signal.SIGTERM
    assert all((tmp_path / f"saved_{index}").exists() for index in (0, 1))
    assert len(starts(tmp_path, 0)) == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
def test_no_process_outlives_a_killed_launcher(tmp_path):
    process = launch(tmp_path, SAVING)
    wait_for_both(tmp_path, "ready")
    process.kill()
    process.communicate(timeout=60)
    wait_for_both(tmp_path, "saved")


@pytest.mark.parametrize(
    ("command", "message"),
    [([], "a command behind --"), (["--", "no-such-program"], "there is no program 'no-such-program'")],
)
def test_command_line_errors(command, message):
    wrong = subprocess.run([LAUNCHER, "--processes=2", *command], capture_output=True, text=True)
    assert wrong.returncode == 2 and message in wrong.stderr and "Traceback" not in wrong.stderr
