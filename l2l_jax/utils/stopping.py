"""Handling of the signals that request a stop: SIGINT, SIGTERM and SIGHUP.

Importing this module does not import JAX.
"""

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from l2l_jax.utils import distributed

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Seconds after a signal at which a program that has not ended is killed: the main thread, which runs Python's
# signal handlers, or another thread may hang in a read that never returns, for example on a dead mount
GRACE_SECONDS = 6.0


class SignalReceived(KeyboardInterrupt):
    """An exception for a signal that requests a stop; `except Exception` does not catch it."""

    def __init__(self, signal_number: int):
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


class StopRequest:
    """A stop request from a signal to any process, on which all processes agree at the same step.

    In every step, the processes exchange received signals: one integer, in a small program after the step,
    whose result is read one step later. No step waits for it. A single process sends nothing.

    While a request is `patient`, the running code will stop soon and save its state, and may take as long as
    it needs; otherwise the program is killed a few seconds after a signal.
    """

    def __init__(self):
        self.received: int | None = None  # number of the signal received by this process
        self.patient = False
        self._pending: Any = None
        if distributed.place()[1] > 1:
            from l2l_jax.utils.multihost import largest_of_all  # imported late to keep startup fast

            self._largest = largest_of_all()

    def agreed(self) -> int | None:
        """Return the number of the signal that any process had received at the previous call, or None.

        Call it once per step in all processes. With one process, the signal received so far is returned.
        """
        if distributed.place()[1] == 1:
            return self.received
        previous, self._pending = self._pending, self._largest(self.received or 0)
        return None if previous is None else int(previous) or None


# Requests of the blocks that the main thread, which runs signal handlers, has entered
REQUESTS: list[StopRequest] = []


def asked_to_stop() -> int | None:
    """Return the number of the signal that requests the innermost block to stop, or None."""
    return REQUESTS[-1].received if REQUESTS else None


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Convert signals to a `StopRequest` while the block runs.

    A second SIGINT at least a second after the first signal ends the process immediately. A signal that was
    not handled by the end of the block is raised again. In other threads, the request is that of the main
    thread's block, if there is one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield REQUESTS[-1] if REQUESTS else StopRequest()
        return
    stop, first = StopRequest(), math.inf

    def request(number: int) -> None:
        nonlocal first
        if number == signal.SIGINT and time.monotonic() > first + 1:
            _end_now(number)
        stop.received, first = number, min(first, time.monotonic())

    REQUESTS.append(stop)
    try:
        with _handled(request):
            yield stop
    except BaseException:
        stop.received = None
        raise
    finally:
        REQUESTS.remove(stop)
    if stop.received is not None:
        os.kill(os.getpid(), stop.received)


@contextlib.contextmanager
def raising_signals() -> Iterator[None]:
    """Raise `SignalReceived` in the main thread for each signal, and kill the process if it then hangs.

    The code that catches the exception must print the message.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    previous = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    exited = threading.Event()

    def watch() -> None:
        while received := os.read(read, 1):
            if received[0] in SIGNALS:
                time.sleep(GRACE_SECONDS)  # a Timer cannot start during interpreter shutdown (3.12)
                if not any(stop.patient for stop in REQUESTS):
                    _end_now(received[0], silent=exited.is_set())
        os.close(read)

    def stop(number: int) -> None:
        raise SignalReceived(number)

    threading.Thread(target=watch, name="l2l_jax-signals", daemon=True).start()
    try:
        with _handled(stop):
            yield
    finally:
        exited.set()
        signal.set_wakeup_fd(previous)
        os.close(write)


@contextlib.contextmanager
def _handled(handler: Callable[[int], Any]) -> Iterator[None]:
    """Call `handler` with the number of each signal while the block runs, in the main thread.

    A SIGHUP that the parent process ignores, as `nohup` does, stays ignored.
    """
    taken = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    previous = {number: signal.signal(number, lambda number, _: handler(number)) for number in taken}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def _end_now(number: int, silent: bool = False) -> None:
    """End the process immediately after printing one line."""
    if not silent:
        name = signal.Signals(number).name
        line = f"{name}: stopped. Run the same command to resume from what is saved."
        print(line, file=sys.stderr, flush=True)
    os._exit(128 + number)
