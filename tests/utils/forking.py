"""Fast starting processes, forked by a `multiprocessing` server that has already imported the modules.

`python -m l2l_jax.main` spends two seconds importing JAX, Orbax and other packages; the server
does this once for all processes that a test worker starts. Each has its own environment, folder and outputs,
runs its module as `__main__` and exits like Python. All of them share the seed of `hash`;
test_main_several.py has, with `-m soak`, processes with different seeds.
"""

import atexit
import gc
import multiprocessing
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback

from tests.compiling import collect_garbage_rarely

ROOT = pathlib.Path(__file__).parents[2]
CONTEXT = multiprocessing.get_context("forkserver")
DRAWS = "L2L_JAX_TESTS_DRAWS"
"""Environment variable set to "no" for processes that need not draw a report, which report/ tests."""

CONTEXT.set_forkserver_preload([
    "flax.linen", "grain", "jax", "matplotlib.pyplot", "optax", "orbax.checkpoint", "scipy.stats",
    "sklearn.datasets", "l2l_jax.cli.common", "l2l_jax.experiment.pipeline", "tests.utils.forking",
])  # fmt: skip  # no program, because each defines its flags when it is run


class Process:
    """A forked process with the methods of `subprocess.Popen` that tests use."""

    def __init__(self, arguments, env, cwd, stdin):
        self._files = [tempfile.NamedTemporaryFile("w+", encoding="utf-8") for _ in range(3)]  # noqa: SIM115
        self._files[0].write(stdin)
        self._files[0].flush()
        paths = [file.name for file in self._files]
        self._process = CONTEXT.Process(target=_become, args=(arguments, env, str(cwd), paths))
        self._process.start()
        self.pid, self.terminate, self.kill = (self._process.pid, self._process.terminate, self._process.kill)

    @property
    def returncode(self):
        """Return the exit code, or None while it runs; −N after signal N."""
        return self._process.exitcode

    def poll(self):
        return self.returncode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return self.returncode

    def communicate(self, timeout=None):
        self.wait(timeout)
        return tuple(pathlib.Path(file.name).read_text(encoding="utf-8") for file in self._files[1:])


def start(*arguments, env=None, cwd=ROOT, stdin=""):
    """Start `python ARGUMENTS` with `-m` or `-c`; `communicate` returns output and errors."""
    env = dict(os.environ if env is None else env)
    read, now = ({n: x for n, x in e.items() if n.startswith("JAX_")} for e in (os.environ, env))
    if read != now:
        raise ValueError("Start this process with subprocess: JAX reads its environment when imported.")
    return Process([*map(str, arguments)], env, cwd, stdin)


def run(*arguments, timeout=300, **options):
    """Run `start` and wait; return exit code, output and errors."""
    process = start(*arguments, **options)
    try:
        output, errors = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, output, errors


def _become(arguments, env, cwd, paths):
    """Run the requested module in this process, and exit like Python."""
    gc.freeze()  # garbage collection would touch, and therefore copy, all pages of the server
    collect_garbage_rarely()
    for place, path in enumerate(paths):
        file = os.open(path, os.O_RDONLY if place == 0 else os.O_WRONLY | os.O_APPEND)
        os.dup2(file, place)
        os.close(file)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  (was closed)
    sys.stdout.reconfigure(line_buffering="PYTHONUNBUFFERED" in env)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    if env.get(DRAWS) == "no":
        from l2l_jax.report import write

        write.draw, write.page = (lambda *_: {}), (lambda *_: "")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    kind, what, *rest = arguments
    sys.argv[:] = [kind, *rest]
    sys.path.insert(0, cwd if kind == "-m" else "")
    code = 0
    try:
        if kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as error:
        code = error.code & 255 if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException as error:
        traceback.print_exc()
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for output in (sys.stdout, sys.stderr):
        if not output.closed:
            output.flush()
    if code < 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code)
