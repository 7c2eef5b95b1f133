"""Signals that ask the program to stop: SIGINT, SIGTERM and SIGHUP."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

GRACE_SECONDS = 8.0
"""Seconds after a signal at which the process is ended if it has not ended by itself: threads that wait for a
read that never returns, such as on a dead network mount, would keep Python from ending."""


class Request(Protocol):
    """A request to stop; `received` is the number of the signal."""

    received: int | None


REQUESTS: list[Request] = []
"""Requests of the blocks that the main thread is in; signal handlers belong to it."""


def asked_to_stop() -> int | None:
    """Return the number of the signal that asks the innermost block to stop, or None."""
    return REQUESTS[-1].received if REQUESTS else None


class SignalReceived(KeyboardInterrupt):
    """A signal asks the program to end; `except Exception` does not catch it.

    Attributes:
      signal_number: Number of the signal.
    """

    def __init__(self, signal_number: int):
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


@contextlib.contextmanager
def handled(handler: Callable[[int], Any]) -> Iterator[None]:
    """Call `handler` with the number of each signal while the block runs; in the main thread.

    A SIGHUP that the parent process has told to ignore, as `nohup` does, stays ignored.
    """
    taken = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    previous = {number: signal.signal(number, lambda n, _: handler(n)) for number in taken}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


@contextlib.contextmanager
def raising_signals() -> Iterator[None]:
    """Raise `SignalReceived` in the main thread for each signal, and end the process if it then hangs.

    Whoever catches the exception prints the line about it.
    """
    left = False

    def end(number: int) -> None:
        if left:
            os._exit(128 + number)
        end_now(number)

    def stop(number: int) -> None:
        later(lambda: end(number))
        raise SignalReceived(number)

    try:
        with handled(stop):
            yield
    finally:
        left = True


def later(call: Callable[[], Any]) -> None:
    """Call a function in `GRACE_SECONDS`, in a thread that does not keep Python from ending."""
    timer = threading.Timer(GRACE_SECONDS, call)
    timer.daemon = True
    timer.start()


def end_now(number: int) -> None:
    """End the process with one line."""
    name = signal.Signals(number).name
    print(f"{name}: stopped. Run the same command to resume from what is saved.", file=sys.stderr, flush=True)
    os._exit(128 + number)
