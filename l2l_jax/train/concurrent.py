"""Concurrent execution of independent work, because a small model's step does not use all cores of a CPU."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import jax
from threadpoolctl import threadpool_limits

from l2l_jax.utils.runtime import usable_cpus
from l2l_jax.utils.stopping import stop_request

T = TypeVar("T")
AT_A_TIME = 2  # maximum number of concurrent training runs, each of which holds its own state
# Python handles signals in the main thread; a signal that arrives just before it sleeps does not wake it
AWAKE_EVERY_SECONDS = 1.0


def threads(most: int) -> int:
    """Return the number of threads that can run programs: up to `most` on a single CPU device, otherwise 1.

    Multiple devices must all run the same programs in the same order.
    """
    is_single_cpu = jax.process_count() == 1 and jax.device_count() == 1 and jax.default_backend() == "cpu"
    return min(most, len(usable_cpus())) if is_single_cpu else 1


def in_threads(work: Sequence[Callable[[], T]], count: int) -> Iterator[T]:
    """Yield the results of independent functions in order, each as soon as it is available.

    A signal to stop reaches the training runs of all threads.

    Args:
      work: Functions without arguments.
      count: Number of threads; 1 calls the functions sequentially in this thread.

    Raises:
      Exception: A function raised it. Running functions finish first; no others are started.
    """
    if min(count, len(work)) < 2:
        yield from (function() for function in work)
        return
    # Separate BLAS threads would busy-wait for work.
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
    """Call independent functions, up to `AT_A_TIME` concurrently where possible."""
    return list(in_threads(work, threads(AT_A_TIME)))
