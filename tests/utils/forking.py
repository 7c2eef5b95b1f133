"""Processes that start quickly: forked by a server that has imported what they need.

`python -m l2l_jax.main` spends two seconds importing JAX, Orbax and the rest before it begins. Here a server
does that once for all processes that a test worker starts. It has no thread and has not started JAX's
backends, so that what it forks is as good as new: each child has its own environment, folder and outputs,
runs its module as `__main__` and ends as Python ends. Where Linux's pidfds are missing, processes are started
in the ordinary way.

All children of one server share the seed of `hash`; test_main_several.py has processes in which it differs.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import pathlib
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile

from tests.compiling import collect_garbage_rarely

ROOT = pathlib.Path(__file__).parents[2]

IMPORTED = (
    "flax.linen",
    "grain",
    "jax",
    "matplotlib.pyplot",
    "optax",
    "orbax.checkpoint",
    "scipy.stats",
    "sklearn.datasets",
    "l2l_jax.cli.common",
    "l2l_jax.experiment.pipeline",
)
"""What the server imports; no program, because each defines its flags when it is run."""


class Process:
    """A forked process, with those methods of `subprocess.Popen` that tests use.

    Args:
      server: the socket on which the server listens.
      request: "arguments", "env" and "cwd".
      stdin: the file that it reads.
    """

    def __init__(self, server, request, stdin):
        self.returncode = None
        self._outputs = [_empty_file(), _empty_file()]
        self._connection, far = socket.socketpair()
        with far:
            files = [far.fileno(), stdin.fileno(), *(file.fileno() for file in self._outputs)]
            socket.send_fds(server, [b"!"], files)
        self._connection.sendall(json.dumps(request).encode() + b"\n")
        self._told = self._connection.makefile("r")
        (self.pid,) = json.loads(self._told.readline())

    def poll(self):
        """The exit code, or None while it runs; −N after signal N."""
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout=None):
        """The exit code, when it has ended."""
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            (self.returncode,) = json.loads(self._told.readline())
            self._told.close()
            self._connection.close()
        return self.returncode

    def communicate(self, timeout=None):
        """Its output and its errors, when it has ended."""
        self.wait(timeout)
        for file in self._outputs:
            file.seek(0)
        return tuple(file.read() for file in self._outputs)

    def send_signal(self, number):
        """Send it a signal unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def start(*arguments, env=None, cwd=ROOT, stdin=""):
    """`python ARGUMENTS`, which are those of `-m` or `-c`; `communicate` gives its output and its errors.

    Raises:
      ValueError: `env` changes what JAX reads when it is imported.
    """
    env = dict(os.environ if env is None else env)
    command = [*map(str, arguments)]
    with _empty_file() as given:
        given.write(stdin)
        given.seek(0)
        if not can_fork():
            return subprocess.Popen(
                [sys.executable, *command],
                env=env,
                cwd=cwd,
                text=True,
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        server, imported_with = _server()
        if _read_by_jax(env) != imported_with:
            raise ValueError("Start this process with subprocess: JAX reads its environment when imported.")
        return Process(server, {"arguments": command, "env": env, "cwd": str(cwd)}, given)


def run(*arguments, timeout=300, **options):
    """`start`, then wait: exit code, output, errors."""
    process = start(*arguments, **options)
    try:
        output, errors = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, output, errors


def _empty_file():
    return tempfile.TemporaryFile("w+", encoding="utf-8")


def _read_by_jax(env):
    return {name: value for name, value in env.items() if name.startswith("JAX_")}


@functools.cache
def can_fork():
    """Whether this is a Linux with pidfds, which tell the server that a child has ended."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):  # not Linux, or an old one
        return False
    return True


@functools.cache
def _server():
    """The socket of this worker's server, and the variables that its JAX has read."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "tests.utils.forking", str(theirs.fileno())]
    with theirs:
        process = subprocess.Popen(
            command, cwd=ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )

    def end():
        ours.close()
        process.wait()

    atexit.register(end)
    return ours, _read_by_jax(os.environ)


def _serve(requests):
    """Fork a child for each request, until there will be no more; tell how each ends.

    Returns:
      In a child, its connection and its three standard files; in the server, None.
    """
    waiting = selectors.DefaultSelector()
    waiting.register(requests, selectors.EVENT_READ)
    while True:
        for key, _ in waiting.select():
            if key.fileobj is not requests:
                waiting.unregister(key.fileobj)
                os.close(key.fileobj)
                pid, connection = key.data
                _, status = os.waitpid(pid, 0)
                _tell(connection, os.waitstatus_to_exitcode(status))
                connection.close()
                continue
            asked, files, *_ = socket.recv_fds(requests, 1, 4)
            running = [other.data for other in waiting.get_map().values() if other.data]
            if not asked:
                for pid, _ in running:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                return None
            pid = os.fork()
            if pid == 0:
                for other in waiting.get_map().values():
                    os.close(other.fd)
                for _, connection in running:
                    connection.close()
                waiting.close()
                requests.detach()
                return files
            connection, *rest = files
            for file in rest:
                os.close(file)
            connection = socket.socket(fileno=connection)
            _tell(connection, pid)
            waiting.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, connection))


def _tell(connection, *values):
    with contextlib.suppress(OSError):  # nobody listens any more
        connection.sendall(json.dumps(values).encode() + b"\n")


def _become(connection, *files):
    """Run in this process what is asked for on the connection, as Python would."""
    with socket.socket(fileno=connection) as asking:
        request = json.loads(asking.makefile().readline())
    for place, file in enumerate(files):
        os.dup2(file, place)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.stdout.reconfigure(line_buffering="PYTHONUNBUFFERED" in os.environ)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    kind, what, *rest = request["arguments"]
    sys.argv[:] = [kind, *rest]
    sys.path[0] = request["cwd"] if kind == "-m" else ""
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    elif kind == "-c":
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    else:
        raise ValueError(f"neither -m nor -c: {kind}")


def _leave(codes):
    """End a child when its threads and exit functions have: taking all modules apart is slow."""
    if codes:
        for output in (sys.stdout, sys.stderr):
            if not output.closed:
                output.flush()
        os._exit(codes[-1])


def _main():
    """What the server does, and what its children do: they end when this ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from a terminal, all get it: the tests end the server
    requests = socket.socket(fileno=int(sys.argv[1]))
    codes = []
    atexit.register(_leave, codes)  # registered first, it is called last
    for name in IMPORTED:
        importlib.import_module(name)
    from jax._src import xla_bridge

    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1 and not xla_bridge.backends_are_initialized(), f"{threads} threads"
    gc.collect()
    gc.freeze()  # children collecting garbage would touch, and so copy, all pages
    collect_garbage_rarely()
    files = _serve(requests)
    if files is None:
        return
    try:
        _become(*files)
        codes.append(0)
    except SystemExit as error:
        codes.append(error.code & 255 if isinstance(error.code, int) else int(error.code is not None))
        raise
    except Exception:
        codes.append(1)
        raise


if __name__ == "__main__":
    _main()
