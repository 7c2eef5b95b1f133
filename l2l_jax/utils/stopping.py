"""Signals that ask the program to stop and that have not been acted on yet."""

from typing import Protocol


class Request(Protocol):
    """A request to stop; `received` is the number of the signal."""

    received: int | None


REQUESTS: list[Request] = []
"""Requests of the blocks that the main thread is in; signal handlers belong to it."""


def asked_to_stop() -> int | None:
    """Return the number of the signal that asks the innermost block to stop, or None."""
    return REQUESTS[-1].received if REQUESTS else None
