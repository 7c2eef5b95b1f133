"""Independent pieces of work at the same time: the step of a small model cannot fill the cores of a CPU."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import TypeVar

import jax

from l2l_jax.training.stopping import stop_request

T = TypeVar("T")

AT_A_TIME = 2
"""How many pieces run at the same time, at most: each holds a training state of its own."""

AWAKE_EVERY_SECONDS = 1.0
"""Python handles signals in the main thread; one that comes just as it falls asleep does not wake it."""


def threads(most: int) -> int:
    """How many threads can run programs of their own: up to `most` with one CPU device, otherwise one.

    Several devices must all run the same programs in the same order.
    """
    alone = jax.process_count() == 1 and jax.device_count() == 1 and jax.default_backend() == "cpu"
    return min(most, os.cpu_count() or 1) if alone else 1


def side_by_side(work: Sequence[Callable[[], T]]) -> list[T]:
    """What pieces of work return, in their order.

    With one CPU device, `AT_A_TIME` threads do them; elsewhere one follows the other. A signal to stop
    reaches the trainings of all threads.

    Args:
      work: the pieces; none depends on another.

    Raises:
      Exception: what a piece raised, once those that had begun have ended; no other begins.
    """
    count = min(threads(AT_A_TIME), len(work))
    if count < 2:
        return [piece() for piece in work]
    with stop_request(), ThreadPoolExecutor(count, "l2l_jax-side-by-side") as pool:
        pieces = [pool.submit(piece) for piece in work]
        left = set(pieces)
        while left:
            done, left = wait(left, AWAKE_EVERY_SECONDS, FIRST_COMPLETED)
            if any(not piece.cancelled() and piece.exception() for piece in done):
                for piece in left:
                    piece.cancel()
        return [piece.result() for piece in pieces if not piece.cancelled()]
