"""Signals become requests while a block runs; several processes: tests/test_several_processes.py."""

import os
import signal
import subprocess
import sys

import pytest

from l2l_jax.errors import Interrupted
from l2l_jax.utils.stopping import stop_request


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_request(number):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted), stop_request() as stop:
        assert stop.agreed() is None
        os.kill(os.getpid(), number)
        assert stop.agreed() == number
        raise Interrupted(1, number)  # the loop has acted on it
    assert signal.getsignal(number) is before


def test_a_request_that_nobody_saw_takes_its_usual_effect():
    program = (
        "import os, signal\nfrom l2l_jax.utils.stopping import stop_request\n"
        "with stop_request():\n    os.kill(os.getpid(), signal.SIGTERM)\n    print('inside', flush=True)\n"
        "print('behind', flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == -signal.SIGTERM and done.stdout == "inside\n"
