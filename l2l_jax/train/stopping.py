"""Stopping between steps when a signal asks for it, in all processes after the same step."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from l2l_jax.utils.stopping import REQUESTS


class StopRequest:
    """A wish to stop, from a signal to any process, that all processes learn of in the same step.

    Every step, each process tells the others whether it was asked: one integer, in a small program behind
    the step, whose result is read one step later. No step waits for it. One process sends nothing.
    """

    def __init__(self):
        self.received: int | None = None
        self._pending: jax.Array | None = None
        if jax.process_count() > 1:
            devices = Mesh(np.array(jax.devices()), ("device",), axis_types=(AxisType.Auto,))
            self._split = NamedSharding(devices, PartitionSpec("device"))
            self._largest = jax.jit(lambda x: x.max(), out_shardings=NamedSharding(devices, PartitionSpec()))

    def agreed(self) -> int | None:
        """The number of the signal that some process had received when this was last called, or None.

        To be called once a step, by all processes; with one process, the signal received by now.
        """
        if jax.process_count() == 1:
            return self.received
        mine = np.full(jax.local_device_count(), self.received or 0, np.int32)
        previous = self._pending
        self._pending = self._largest(jax.make_array_from_process_local_data(self._split, mine))
        return None if previous is None else int(previous) or None


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Turn SIGTERM and SIGINT into a `StopRequest` while the block runs.

    A signal that nobody has acted on by the end of the block takes its usual effect there. In another thread,
    the request is that of the block that the main thread is in, if it is in one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield REQUESTS[-1] if REQUESTS else StopRequest()
        return
    stop = StopRequest()

    def request(number, _frame):
        stop.received = number

    previous = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    REQUESTS.append(stop)
    try:
        yield stop
    except BaseException:
        stop.received = None
        raise
    finally:
        REQUESTS.remove(stop)
        for number, handler in previous.items():
            signal.signal(number, handler)
        if stop.received is not None:
            os.kill(os.getpid(), stop.received)
