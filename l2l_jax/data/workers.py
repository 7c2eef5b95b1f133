"""Worker processes that read images, and the pool that hands work to them.

A worker is a fresh interpreter that loads this module and what a `Reader` needs: neither JAX nor grain,
nor the program that started it. (grain's own worker processes import JAX, which takes them seconds and
hundreds of megabytes.) It ends when its connection closes, so it outlives its parent in no case.
"""

import contextlib
import os
import queue
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import cloudpickle

from l2l_jax.data.reading import Reader, Row, Rows
from l2l_jax.errors import UserError
from l2l_jax.utils.threads import DaemonPool

ENDED_WITHIN = 2.0
"""Seconds to wait for a killed process."""


class WorkerPool:
    """Processes that read rows.

    Args:
      reader: Reader of which each process gets a copy.
      count: Number of processes.
    """

    def __init__(self, reader: Reader, count: int):
        pickled = cloudpickle.dumps(reader)
        self._workers = [_Worker(pickled) for _ in range(count)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = DaemonPool(count, "l2l_jax-worker")

    @property
    def process_ids(self) -> list[int]:
        """Ids of the processes."""
        return [worker.process.pid for worker in self._workers]

    def read(self, rows: Sequence[Row]) -> "Future[Rows]":
        """Have a worker read; the future holds the rows, its error, or a UserError if it died."""
        return self._threads.submit(self._read, rows)

    def _read(self, rows: Sequence[Row]) -> Rows:
        worker = self._idle.get()
        try:
            return worker.read(rows)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """End the processes, which hold nothing that could be lost; unfinished work is given up."""
        for worker in self._workers:
            worker.process.kill()  # a thread that waits for it wakes up
        self._threads.close()
        for worker in self._workers:
            worker.close()


class _Worker:
    """The parent's end of a worker process; one thread at a time may use it."""

    def __init__(self, pickled_reader: bytes):
        self._connection, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", f"from l2l_jax.data.workers import serve; serve({theirs.fileno()})"],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C and signals to the group are the parent's business
            )
        self._unsent: bytes | None = pickled_reader

    def read(self, rows: Sequence[Row]) -> Rows:
        if self._unsent is not None:  # not sooner: it waits for the interpreter, and all start together
            self._send(self._unsent)
            self._unsent = None
        self._send(cloudpickle.dumps(rows))
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionError):
            raise self._died() from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _send(self, message: bytes) -> None:
        try:
            self._connection.send_bytes(message)
        except ConnectionError:
            raise self._died() from None

    def _died(self) -> UserError:
        self.process.kill()
        return UserError(
            f"A worker process that reads images ended by itself (exit code {self.process.wait()}; -9: the "
            "memory was full). Its output is above. Fewer workers (config.data.workers) need less "
            "memory; run the same command to resume."
        )

    def close(self) -> None:
        self._connection.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # a dead network file system holds it
            self.process.wait(ENDED_WITHIN)


def serve(file_descriptor: int) -> None:
    """Receive a `Reader`, then read rows until the connection closes: the program of a worker process."""
    with Connection(file_descriptor) as connection, contextlib.suppress(EOFError, ConnectionError):
        reader = cloudpickle.loads(connection.recv_bytes())
        while True:
            rows = cloudpickle.loads(connection.recv_bytes())
            try:
                answer = reader.read(rows)
            except Exception as error:  # the parent raises it
                answer = error
            connection.send(answer)
