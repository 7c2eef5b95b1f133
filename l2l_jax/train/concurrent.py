"""Independent work at the same time: the step of a small model cannot fill the cores of a CPU."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import jax
from threadpoolctl import threadpool_limits

from l2l_jax.utils.runtime import usable_cpus
from l2l_jax.utils.stopping import stop_request

T = TypeVar("T")
AT_A_TIME = 2  # greatest number of trainings at the same time: each holds a state of its own
# Python handles signals in the main thread; one that comes just as it falls asleep does not wake it
AWAKE_EVERY_SECONDS = 1.0


def threads(most: int) -> int:
    """Return how many threads can run programs: up to `most` with one CPU device, otherwise one.

    Several devices must all run the same programs in the same order.
    """
    alone = jax.process_count() == 1 and jax.device_count() == 1 and jax.default_backend() == "cpu"
    return min(most, len(usable_cpus())) if alone else 1


def in_threads(work: Sequence[Callable[[], T]], count: int) -> Iterator[T]:
    """Yield what independent functions return, in their order, each as soon as it is there.

    A signal to stop reaches the trainings of all threads.

    Args:
      work: Functions.
      count: Number of threads; 1: one follows the other in this thread.

    Raises:
      Exception: What a function raised, after those that had begun have ended; no other begins.
    """
    if min(count, len(work)) < 2:
        yield from (function() for function in work)
        return
    # BLAS threads of their own would wait for work in a busy loop.
    blas = threadpool_limits(1, "blas")
    with stop_request(), blas, ThreadPoolExecutor(count, "l2l_jax-side-by-side") as pool:
        futures = [pool.submit(function) for function in work]

        def end_others(future: Future) -> None:
            if not future.cancelled() and future.exception():
                pool.shutdown(wait=False, cancel_futures=True)

        try:
            for future in futures:
                future.add_done_callback(end_others)
            for future in futures:
                while not wait([future], AWAKE_EVERY_SECONDS).done:
                    pass
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def side_by_side(work: Sequence[Callable[[], T]]) -> list[T]:
    """Call independent functions, `AT_A_TIME` at the same time where they can run side by side."""
    return list(in_threads(work, threads(AT_A_TIME)))
