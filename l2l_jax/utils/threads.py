"""A thread pool that does not block interpreter exit, unlike `ThreadPoolExecutor`."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future, InvalidStateError
from typing import Any, TypeVar

T = TypeVar("T")


class DaemonPool:
    """A pool of `count` daemon threads that call functions.

    A thread that hangs on a dead network file system cannot be stopped. Therefore nothing waits for threads:
    `close` abandons unfinished calls, and the interpreter exits without them.
    """

    def __init__(self, count: int, name: str = "l2l_jax"):
        self._tasks: queue.SimpleQueue[tuple[Future, Callable, tuple] | None] = queue.SimpleQueue()
        self._open: set[Future] = set()
        self._lock, self._closed = threading.Lock(), False
        self._count = count
        for number in range(count):
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True).start()

    def submit(self, function: Callable[..., T], *args: Any) -> "Future[T]":
        """Call `function(*args)` in a thread; the future holds its result or error."""
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                future.set_exception(CancelledError())
                return future
            self._open.add(future)
        self._tasks.put((future, function, args))
        return future

    def map(self, function: Callable[[Any], T], values: Iterable[Any]) -> list[T]:
        """Call a function on each value; return the results in order."""
        futures = [self.submit(function, value) for value in values]
        return [future.result() for future in futures]

    def close(self) -> None:
        """Stop idle threads; unfinished futures raise CancelledError. Repeated calls are allowed."""
        with self._lock:
            self._closed = True
            unfinished, self._open = self._open, set()
        for future in unfinished:
            with contextlib.suppress(InvalidStateError):
                future.set_exception(CancelledError())
        for _ in range(self._count):
            self._tasks.put(None)

    def __enter__(self) -> "DaemonPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, function, args = task
            if future.done():
                continue
            try:
                result, error = function(*args), None
            except BaseException as raised:
                result, error = None, raised
            with self._lock:
                self._open.discard(future)
            with contextlib.suppress(InvalidStateError):
                future.set_result(result) if error is None else future.set_exception(error)
            del task, future, function, args, result, error
