#!/usr/bin/env python3
"""Run a program as several processes on this machine, and start them again when one is lost.

    python launch/local.py --processes=2 -- python -m l2l_jax.main --config=configs/digits_mae.py

Every process gets the flags --coordinator, --num_processes and --process_id; its output appears here
behind its number. When one process fails, the others have --grace seconds to end too, then they are killed.
If the run was not finished, all start again, at most --max-restarts times: the program resumes from its
last checkpoint. There is no restart if the first that failed had exit code 1 or 2 (a mistake that a restart
does not mend), or when this launcher itself was asked to stop (SIGTERM, SIGINT): it passes the signal on
and waits.

Exit code: 0; or that of the process that ended first with another code, 128 + N for signal N.
"""

import argparse
import contextlib
import ctypes
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
from typing import IO

FINAL = (1, 2)
"""Exit codes of mistakes: of the program's own, and of Python's interpreter or argument parsers."""

PR_SET_PDEATHSIG = 1  # of Linux's prctl.h


class Attempt:
    """The processes of one start, and what becomes of them.

    Args:
      command: the program and its arguments.
      count: how many processes.
      environment: their environment variables.
    """

    def __init__(self, command: list[str], count: int, environment: dict[str, str]):
        self.codes: dict[int, int] = {}
        self._ended: queue.Queue[tuple[int, int]] = queue.Queue()
        address = f"127.0.0.1:{free_port()}"
        self._processes = [
            subprocess.Popen(
                [*command, f"--coordinator={address}", f"--num_processes={count}", f"--process_id={index}"],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
            for index in range(count)
        ]
        self._readers = []
        for index, process in enumerate(self._processes):
            for source, sink in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
                reader = threading.Thread(target=forward, args=(index, source, sink), daemon=True)
                self._readers.append(reader)
            threading.Thread(target=self._wait_for, args=(index, process), daemon=True).start()
        for reader in self._readers:
            reader.start()

    def _wait_for(self, index: int, process: subprocess.Popen) -> None:
        self._ended.put((index, process.wait()))

    def send(self, number: int) -> None:
        """Send a signal to every process that still runs, and to what it started."""
        for index, process in enumerate(self._processes):
            if index not in self.codes and process.returncode is None:
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    os.killpg(process.pid, number)

    def wait(self, grace: float) -> None:
        """Until all have ended; `grace` seconds after the first that failed, the others are killed."""
        while len(self.codes) < len(self._processes):
            try:
                index, code = self._ended.get(timeout=grace if any(self.codes.values()) else None)
            except queue.Empty:
                left = [i for i in range(len(self._processes)) if i not in self.codes]
                tell(f"killing process {', '.join(map(str, left))}: still there after {grace:g} s")
                self.send(signal.SIGKILL)
                grace = 60.0
                continue
            self.codes[index] = code
        for reader in self._readers:
            reader.join(timeout=5)  # a process that one of them left behind may hold the pipe

    @property
    def first_failure(self) -> tuple[int, int]:
        """Index and code of the process that ended first with a code other than 0; `(0, 0)` if none did."""
        return next(((index, code) for index, code in self.codes.items() if code), (0, 0))


def run(command: list[str], count: int, max_restarts: int, grace: float, environment: dict[str, str]) -> int:
    """Start, watch, start again; the exit code."""
    asked: list[int] = []
    attempt: Attempt | None = None

    def stop(number: int, _frame: object) -> None:
        asked.append(number)
        if attempt is not None:
            attempt.send(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    for restarts in range(max_restarts + 1):
        attempt = Attempt(command, count, environment)
        if asked:  # while they were started
            attempt.send(asked[-1])
        attempt.wait(grace)
        index, code = attempt.first_failure
        if asked:
            return 128 + asked[0]
        if code == 0:
            return 0
        tell(f"process {index} ended with {describe(code)}")
        if code in FINAL:
            return code
        if restarts < max_restarts:
            tell(f"starting all again ({restarts + 1} of at most {max_restarts} times)")
    return code if code > 0 else 128 - code


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def die_with_parent() -> None:
    """Have Linux send this process SIGTERM when the launcher ends, however it does."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def forward(index: int, source: IO[str], sink: IO[str]) -> None:
    """Copy lines, each behind the number of its process."""
    for line in source:
        sink.write(f"[{index}] {line if line.endswith(chr(10)) else line + chr(10)}")
        sink.flush()


def describe(code: int) -> str:
    """An exit code in words."""
    return signal.Signals(-code).name if code < 0 else f"code {code}"


def tell(message: str) -> None:
    """Print a line of the launcher's own."""
    print(f"[launch] {message}", file=sys.stderr, flush=True)


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, required=True, help="how many processes")
    parser.add_argument("--max-restarts", type=int, default=0, help="how often all are started again")
    parser.add_argument("--grace", type=float, default=60.0, help="seconds to end after a failure (60)")
    parser.add_argument("--cpu-devices", type=int, help="virtual CPU devices of each process")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- program and arguments")
    options = parser.parse_args()
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command or options.processes < 1:
        parser.error("give --processes of at least 1 and a command behind --")
    if shutil.which(command[0]) is None:
        parser.error(f"there is no program {command[0]!r}")
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if options.cpu_devices:
        flag = f"--xla_force_host_platform_device_count={options.cpu_devices}"
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {flag}".strip()
    return run(command, options.processes, options.max_restarts, options.grace, environment)


if __name__ == "__main__":
    sys.exit(main())
