"""Concurrent tasks in threads: order, errors, signals."""

import os
import signal
import threading

import jax
import pytest

from l2l_jax.train import concurrent as module
from l2l_jax.train.concurrent import side_by_side
from l2l_jax.utils.stopping import stop_request


@pytest.fixture(params=[1, 8])
def devices(request, monkeypatch):
    """Threads are used with one device, not with eight."""
    monkeypatch.setattr(jax, "device_count", lambda: request.param)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(2), raising=False)
    return request.param


def test_results_are_in_order_of_the_tasks(devices):
    first_may_end = threading.Event()

    def first():
        assert first_may_end.wait(20) == (devices == 1)  # the second task runs concurrently, or later
        return "first"

    def second():
        first_may_end.set()
        return "second"

    if devices > 1:
        first_may_end.wait = lambda _: False
    assert side_by_side([first, second]) == ["first", "second"]


def test_first_error_cancels_pending_tasks(devices):
    ran = []

    def fails():
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        side_by_side([fails, *[lambda: ran.append(threading.Event().wait(0.2)) for _ in range(20)]])
    assert len(ran) <= 2 * module.AT_A_TIME and (devices == 1 or not ran)


def test_signal_reaches_tasks_in_all_threads(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(2), raising=False)
    both = threading.Barrier(2)

    def work():
        with stop_request() as stop:
            if both.wait(20) == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            while stop.agreed() is None:
                threading.Event().wait(0.01)
            both.wait(20)
            raise InterruptedError(stop.agreed())

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(InterruptedError, match=str(int(signal.SIGTERM))):
        side_by_side([work, work])
    assert signal.getsignal(signal.SIGTERM) is before
