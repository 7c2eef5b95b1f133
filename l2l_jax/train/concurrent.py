"""Independent pieces of work at the same time: the step of a small model cannot fill the cores of a CPU."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import jax

from l2l_jax.train.stopping import stop_request
from l2l_jax.utils.runtime import usable_cpus

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
    return min(most, len(usable_cpus())) if alone else 1


def in_threads(work: Sequence[Callable[[], T]], count: int) -> Iterator[T]:
    """What pieces of work return, in their order, each as soon as it is there.

    A signal to stop reaches the trainings of all threads.

    Args:
      work: the pieces; none depends on another.
      count: how many threads do them; 1: one follows the other in this thread.

    Raises:
      Exception: what a piece raised, once those that had begun have ended; no other begins.
    """
    if min(count, len(work)) < 2:
        yield from (piece() for piece in work)
        return
    with stop_request(), ThreadPoolExecutor(count, "l2l_jax-side-by-side") as pool:
        pieces = [pool.submit(piece) for piece in work]

        def end_others(piece: Future) -> None:
            if not piece.cancelled() and piece.exception():
                pool.shutdown(wait=False, cancel_futures=True)

        try:
            for piece in pieces:
                piece.add_done_callback(end_others)
            for piece in pieces:
                while not wait([piece], AWAKE_EVERY_SECONDS).done:
                    pass
                yield piece.result()
        finally:
            pool.shutdown(cancel_futures=True)


def side_by_side(work: Sequence[Callable[[], T]]) -> list[T]:
    """`in_threads` with as many as can run programs of their own, `AT_A_TIME` at most."""
    return list(in_threads(work, threads(AT_A_TIME)))
