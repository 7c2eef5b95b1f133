"""Signals end a program promptly, or become stop requests while a block runs."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from l2l_jax.errors import Interrupted
from l2l_jax.utils.stopping import stop_request

PROGRAM = """
import ctypes, os, signal, sys, threading, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup's children ignore it
from l2l_jax.utils import stopping

stopping.GRACE_SECONDS = 0.5
fifo, waits = sys.argv[1:]
try:
    with stopping.raising_signals():
        if waits == "thread":  # keeps Python from ending
            threading.Thread(target=open, args=(fifo,)).start()
        print("ready", flush=True)
        if waits == "call":  # which signals do not interrupt
            mutex = ctypes.create_string_buffer(64)
            for _ in range(2):
                ctypes.CDLL(None).pthread_mutex_lock(mutex)
        while True:
            try:
                time.sleep(60)
            except Exception:
                print("swallowed")
except KeyboardInterrupt as error:
    print("ended by", error, flush=True)
    sys.exit(128 + error.signal_number)
"""


@pytest.mark.parametrize(
    ("number", "waits"),
    [(signal.SIGINT, "main"), (signal.SIGHUP, "main"), (signal.SIGTERM, "thread"), (signal.SIGINT, "call")],
)
def test_signal_ends_the_program(number, waits, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "fifo"), waits]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(waits == "call")
        start = time.monotonic()
        process.send_signal(number)
        output, errors = process.communicate(timeout=20)
    name = signal.Signals(number).name
    assert process.returncode == 128 + number
    if waits == "call":
        assert output == "" and re.fullmatch(f"{name}: stopped. Run the same command to resume .*\n", errors)
    else:
        assert output == f"ended by {name}\n" and errors == ""
    assert time.monotonic() - start < 10


def test_ignored_hangup_stays_ignored():
    program = (
        "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from l2l_jax.utils.stopping import raising_signals\nimport os\n"
        "with raising_signals():\n    os.kill(os.getpid(), signal.SIGHUP)\nprint('still here')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "still here\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_becomes_a_request(number):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted), stop_request() as stop:
        assert stop.agreed() is None
        os.kill(os.getpid(), number)
        assert stop.agreed() == number
        raise Interrupted(1, number)  # the loop has handled it
    assert signal.getsignal(number) is before


def test_unhandled_request_raises_the_signal_again():
    program = (
        "import os, signal\nfrom l2l_jax.utils.stopping import stop_request\n"
        "with stop_request():\n    os.kill(os.getpid(), signal.SIGTERM)\n    print('inside', flush=True)\n"
        "print('behind', flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == -signal.SIGTERM and done.stdout == "inside\n"
