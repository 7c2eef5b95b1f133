"""Launching of `tests.worker` as several processes on this machine."""

import os
import socket
from typing import NamedTuple

from tests.compiling import flags_of_one_device
from tests.utils.forking import DRAWS, start

ENVIRONMENT = {
    **os.environ,
    "XLA_FLAGS": f"{flags_of_one_device()} --xla_cpu_multi_thread_eigen=false",
    "PYTHONUNBUFFERED": "1",
    DRAWS: "no",
}
"""One device per process and one thread per device, because the processes share few cores."""


class Ended(NamedTuple):
    """Result of a process: exit code, stdout and stderr."""

    code: int
    output: str
    errors: str


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_processes(count, *arguments, flags=(), only=None, frozen=None, timeout=240) -> list[Ended]:
    """Run `count` processes, or only the process `only`, until all have ended; then kill `frozen`."""
    address = f"127.0.0.1:{free_port()}"
    common = [f"--coordinator={address}", f"--num_processes={count}", *flags]
    started = []
    try:
        for index in range(count) if only is None else [only]:
            started.append(start(*arguments, *common, f"--process_id={index}", env=ENVIRONMENT))
        for index, process in enumerate(started):
            if index != frozen:
                process.wait(timeout=timeout)  # their output fits into the pipes
        if frozen is not None:
            started[frozen].kill()
        outputs = [process.communicate(timeout=timeout) for process in started]
        return [Ended(p.returncode, *output) for p, output in zip(started, outputs, strict=True)]
    finally:
        for process in started:
            process.kill()


def worker(count, scenario, folder, **options) -> list[Ended]:
    return run_processes(count, "-m", "tests.worker", scenario, str(folder), **options)
