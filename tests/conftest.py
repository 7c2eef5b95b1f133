"""Test setup: 8 virtual CPU devices, no implicit rank promotion, slow files first."""

import functools
import gc
import logging
import os
import pathlib
import sys

from l2l_jax.utils.runtime import MALLOC
from tests.compiling import collect_garbage_rarely, compile_quickly

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers and test processes inherit the environment
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    COMPILED = compile_quickly()
    os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=8"
    os.environ.setdefault("GLIBC_TUNABLES", ":".join(MALLOC))  # else every program of a test would restart

import jax  # noqa: E402  (the variables above must be set first)
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
logging.getLogger("l2l_jax").addHandler(logging.NullHandler())  # otherwise Progress would configure logging
collect_garbage_rarely()


def pytest_collection_modifyitems(items):
    """Run files with slow tests first, to balance the load of workers."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish():
    """Exempt imported objects from garbage collection, because they live as long as the process."""
    gc.freeze()


def pytest_sessionfinish():
    """Exempt objects of the tests as well, because the process collects several times at exit."""
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Keep each file on one worker with `-n`, to share its fixtures; keep the order of files."""
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


@pytest.fixture(autouse=True)
def registries(monkeypatch):
    """Undo registrations of a test."""
    for module, name in (("methods", "METHODS"), ("models", "FAMILIES"), ("audit.attacks", "ATTACKS")):
        loaded = sys.modules.get(f"l2l_jax.{module}.base")
        if loaded is not None:
            registry = getattr(loaded, name)
            monkeypatch.setattr(registry, "_classes", dict(registry._classes))


@pytest.fixture(scope="module")
def one_device():
    """Limit programs in this process to one device, which compiles faster; other tests use eight."""
    from l2l_jax.train import sharding

    mesh, devices = sharding.make_mesh(jax.devices()[:1]), jax.local_devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", lambda *_, **__: mesh)
        patch.setattr(jax, "local_devices", lambda *_, **__: devices)
        patch.setattr(jax, "device_count", lambda *_: 1)
        yield


@pytest.fixture(scope="module")
def compiled_once(one_device):
    """Share an inpainter among evaluations of a model on a task, to compile its program once."""
    from l2l_jax.evals import evaluator

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator, "Inpainter", functools.cache(evaluator.Inpainter))
        yield


@pytest.fixture
def run_here(monkeypatch, capsys):
    """Run a program in this process: `(main, *arguments)` → exit code, output, errors."""
    from absl import flags

    from l2l_jax.cli import common as command_line

    logger = logging.getLogger("l2l_jax")
    before = logger.level, logger.handlers, logger.propagate
    monkeypatch.chdir(pathlib.Path(__file__).parents[1])  # the folder that config paths are relative to

    def unparse():
        for values in (flags.FLAGS, command_line.PROCESSES):
            values.unparse_flags()

    def run(main, *arguments):
        unparse()
        argv = [main.__module__, *map(str, arguments)]
        capsys.readouterr()
        return command_line.run_program(main, argv), *capsys.readouterr()

    yield run
    unparse()
    level, logger.handlers, logger.propagate = before
    logger.setLevel(level)
