"""The shell scripts: shellcheck, and behavior with stubs in place of Slurm's commands and gcloud."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"

GCLOUD = r"""#!/usr/bin/env bash
# Keeps the state of one slice in a file; "run" commands end with the codes listed in a file.
cd "$FAKE"
echo "$*" >>calls
case "$4" in
    describe) cat state 2>/dev/null ;;
    create) echo READY >state ;;
    delete) rm -f state ;;
    ssh)
        case "$*" in
            *"tpu_host.sh run"*)
                code=$(head -n 1 codes)
                sed -i 1d codes
                echo "$code" >last
                [[ $code == 255 ]] && echo PREEMPTED >state
                if [[ $code == 143 ]]; then
                    touch running
                    until [[ -e stopped ]]; do sleep 0.05; done
                fi
                exit "$code"
                ;;
            *"tpu_host.sh stop"*) touch stopped ;;
            *"cat exit_code"*) cat last ;;
        esac
        ;;
esac
"""


def write_commands(folder, **scripts):
    for name, text in scripts.items():
        path = folder / name
        path.write_text(text)
        path.chmod(0o755)


def environment(folder, **variables):
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "FAKE": str(folder), **variables}


@pytest.mark.parametrize("script", sorted(LAUNCH.glob("*.sh")), ids=lambda path: path.name)
def test_shellcheck(script):
    places = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    shellcheck = shutil.which("shellcheck", path=places)
    assert shellcheck is not None, "pip install -e '.[test]'"
    checked = subprocess.run([shellcheck, "--norc", script], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def slurm(folder, *, code, restarts=0):
    write_commands(
        folder,
        srun=f'#!/bin/bash\necho "$@" >>"$FAKE/calls"\nexit {code}\n',
        scontrol='#!/bin/bash\necho "scontrol $*" >>"$FAKE/calls"\n',
    )
    done = subprocess.run(
        ["bash", LAUNCH / "slurm.sh", "--config=c.py", "--workdir=/shared/a b"],
        text=True,
        timeout=30,
        env=environment(folder, SLURM_JOB_ID="42", SLURM_RESTART_COUNT=str(restarts), MAX_REQUEUES="3"),
    )
    return done.returncode, (folder / "calls").read_text().splitlines()


ENDS = [(0, 0, False, 0), (1, 0, False, 1), (2, 1, False, 2), (75, 2, True, 0), (137, 0, True, 0)]


@pytest.mark.parametrize(("code", "restarts", "requeued", "ends_with"), [*ENDS, (75, 3, False, 75)])
def test_slurm_requeues_temporary_failures(tmp_path, code, restarts, requeued, ends_with):
    exit_code, calls = slurm(tmp_path, code=code, restarts=restarts)
    assert exit_code == ends_with
    assert calls[0].endswith("python -m l2l_jax.main --config=c.py --workdir=/shared/a b")
    assert calls[1:] == (["scontrol requeue 42"] if requeued else [])


def test_slurm_forwards_the_warning_and_requeues(tmp_path):
    write_commands(
        tmp_path,
        srun="""#!/bin/bash
            trap 'echo saved >>"$FAKE/calls"; exit 143' TERM
            echo $$ >"$FAKE/pid"
            while true; do sleep 0.05; done""",
        scancel='#!/bin/bash\necho "scancel $*" >>"$FAKE/calls"\nkill -TERM "$(cat "$FAKE/pid")"\n',
        scontrol='#!/bin/bash\necho "scontrol $*" >>"$FAKE/calls"\n',
    )
    script = subprocess.Popen(
        ["bash", LAUNCH / "slurm.sh"],
        env=environment(tmp_path, SLURM_JOB_ID="42"),
        stderr=subprocess.DEVNULL,
    )
    wait_for(tmp_path / "pid", script)
    script.send_signal(signal.SIGTERM)
    assert script.wait(timeout=30) == 0
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == ["scancel --signal=TERM 42", "saved", "scontrol requeue 42"]


def wait_for(path, process):
    deadline = time.monotonic() + 30
    while not path.exists() or not path.read_text() and path.name == "pid":
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def tpu(folder, codes, *, state="READY"):
    write_commands(folder, gcloud=GCLOUD)
    (folder / "codes").write_text("".join(f"{code}\n" for code in codes))
    if state:
        (folder / "state").write_text(state)
    slice_ = dict(TPU="pod", ZONE="zone", TYPE="v4-32", SHARED="10.0.0.2:/share")
    checkout = folder / "checkout"  # small, because it is packed for every run
    shutil.copytree(LAUNCH, checkout / "launch")
    subprocess.run(["git", "init", "-q"], cwd=checkout, check=True)
    subprocess.run(["git", "add", "-A"], cwd=checkout, check=True)
    return subprocess.Popen(
        ["bash", checkout / "launch" / "tpu_pod.sh", "--config=c.py", "--workdir=/mnt/l2l/a b"],
        text=True,
        env=environment(folder, **slice_, PAUSE="0", MAX_RESTARTS="2"),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )


def verbs(folder):
    """Return the gcloud subcommands in short form."""
    lines = (folder / "calls").read_text().splitlines()
    words = ("create", "delete", "scp", "install", "run", "stop")
    return [w for line in lines for w in words if f"tpu-vm {w} " in line or f"tpu_host.sh {w}" in line]


@pytest.mark.parametrize(
    ("codes", "state", "expected", "ends_with"),
    [
        ([0], "READY", "scp install run", 0),
        ([0], "", "create scp install run", 0),
        ([255, 0], "READY", "scp install run delete create scp install run", 0),
        ([75, 0], "READY", "scp install run scp install run", 0),
        ([1], "READY", "scp install run", 1),
        ([75, 75, 75], "READY", "scp install run scp install run scp install run", 75),
    ],
    ids=["runs", "is made first", "is preempted", "loses a process", "is mistaken", "gives up"],
)
def test_tpu_pod(tmp_path, codes, state, expected, ends_with):
    process = tpu(tmp_path, codes, state=state)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == ends_with, errors
    assert " ".join(verbs(tmp_path)) == expected
    calls = (tmp_path / "calls").read_text()
    assert r"run --config=c.py --workdir=/mnt/l2l/a\ b" in calls
    assert ("--spot" in calls) == ("create" in expected)


def test_tpu_pod_stops_all_hosts_on_request(tmp_path):
    process = tpu(tmp_path, [143])
    wait_for(tmp_path / "running", process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert verbs(tmp_path)[-2:] == ["run", "stop"]


def test_tpu_host_stores_the_exit_code_and_can_be_stopped(tmp_path):
    home = tmp_path
    (home / "venv" / "bin").mkdir(parents=True)
    (home / "l2l_jax" / "launch").mkdir(parents=True)
    shutil.copy(LAUNCH / "tpu_host.sh", home / "l2l_jax" / "launch")
    write_commands(
        home / "venv" / "bin",
        python='#!/bin/bash\necho "$@" >"$HOME/called"\ntrap "exit 143" TERM\n'
        "[[ $* == *wait* ]] || exit 75\nwhile true; do sleep 0.05; done\n",
    )
    script = ["bash", "l2l_jax/launch/tpu_host.sh"]
    options = dict(cwd=home, env={**os.environ, "HOME": str(home)})
    assert subprocess.run([*script, "run", "--a=b c"], timeout=30, **options).returncode == 75
    assert (home / "exit_code").read_text() == "75\n"
    assert (home / "called").read_text() == "-m l2l_jax.main --distributed --a=b c\n"
    (home / "called").unlink()
    running = subprocess.Popen([*script, "run", "wait"], **options)
    wait_for(home / "called", running)
    subprocess.run([*script, "stop"], timeout=30, check=True, **options)
    assert running.wait(timeout=30) == 143
    assert (home / "exit_code").read_text() == "143\n"
