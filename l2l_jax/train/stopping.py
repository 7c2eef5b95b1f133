"""Stopping between steps when a signal asks for it, in all processes after the same step."""

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import cast

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from l2l_jax.utils.stopping import REQUESTS, end_now, handled, later


class StopRequest:
    """A request to stop, from a signal to any process, that all processes learn of in the same step.

    Every step, each process tells the others whether it was asked: one integer, in a small program behind
    the step, whose result is read one step later. No step waits for it. One process sends nothing.

    Attributes:
      received: Number of the signal that this process received, or None.
      patient: Whether what runs ends soon and saves its state, however long it takes; otherwise the process
        is ended a few seconds after a signal.
    """

    def __init__(self):
        self.received: int | None = None
        self.patient = False
        self._pending: jax.Array | None = None
        if jax.process_count() > 1:
            devices = Mesh(np.array(jax.devices()), ("device",), axis_types=(AxisType.Auto,))
            self._split = NamedSharding(devices, PartitionSpec("device"))
            self._largest = jax.jit(lambda x: x.max(), out_shardings=NamedSharding(devices, PartitionSpec()))

    def agreed(self) -> int | None:
        """Return the number of the signal that some process had received when this was last called, or None.

        Call it once a step, in all processes; with one process, the signal received by now.
        """
        if jax.process_count() == 1:
            return self.received
        mine = np.full(jax.local_device_count(), self.received or 0, np.int32)
        previous = self._pending
        self._pending = self._largest(jax.make_array_from_process_local_data(self._split, mine))
        return None if previous is None else int(previous) or None


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Turn SIGINT, SIGTERM and SIGHUP into a `StopRequest` while the block runs.

    A second SIGINT, a second after the first signal or later, ends the process at once. A signal that nobody
    has acted on by the end of the block takes its usual effect there. In another thread, the request is that
    of the block that the main thread is in, if it is in one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield cast(StopRequest, REQUESTS[-1]) if REQUESTS else StopRequest()
        return
    stop = StopRequest()
    first = math.inf

    def request(number: int) -> None:
        nonlocal first
        if number == signal.SIGINT and time.monotonic() > first + 1:
            end_now(number)
        stop.received, first = number, min(first, time.monotonic())
        later(lambda: None if stop.patient or stop not in REQUESTS else end_now(number))

    REQUESTS.append(stop)
    try:
        with handled(request):
            yield stop
    except BaseException:
        stop.received = None
        raise
    finally:
        REQUESTS.remove(stop)
    if stop.received is not None:
        os.kill(os.getpid(), stop.received)
