"""Compilation cache in a private folder, and malloc's arenas and freed memory."""

import os
import pathlib
import platform
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from l2l_jax.errors import UserError
from l2l_jax.utils.runtime import keep_compiled_programs

OPTIONS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture(autouse=True)
def options_as_before(monkeypatch, tmp_path):
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_compiled_programs_are_reused(tmp_path):
    compilation_cache.reset_cache()
    keep_compiled_programs()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    assert jax.jit(lambda x: jnp.sin(x) + 12345)(0.0) == 12345
    folder = tmp_path / "l2l_jax" / "compiled"
    assert any(folder.iterdir())
    assert folder.stat().st_mode & 0o077 == 0


def test_compile_cache_writable_by_others_is_rejected(tmp_path):
    (tmp_path / "l2l_jax").write_text("")
    with pytest.raises(UserError, match="--compile_cache: .* cannot be made"):
        keep_compiled_programs()
    (tmp_path / "l2l_jax").unlink()
    folder = tmp_path / "l2l_jax" / "compiled"
    folder.mkdir(parents=True)
    os.chmod(folder, 0o777)
    with pytest.raises(UserError, match="--compile_cache: .*compiled belongs to others or can be written"):
        keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir != str(folder)


needs_glibc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
HUGE = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
needs_huge_pages = pytest.mark.skipif(
    platform.libc_ver() < ("glibc", "2.35") or "[madvise]" not in HUGE.read_text(encoding="ascii"),
    reason="huge pages on request",
)

PROGRAM = """
import ctypes, os, resource, sys, threading
from l2l_jax.utils.runtime import tune_malloc

if "started" not in sys.argv:
    sys.orig_argv.append("started")
    tune_malloc()
libc, SIZE = ctypes.CDLL(None), 256 * 2**20
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def use():
    block = libc.malloc(SIZE)
    ctypes.memset(block, 1, SIZE)
    libc.free(block)

def tell():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    use()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    print(faults, os.getpid(), os.environ.get("GLIBC_TUNABLES"), *sys.argv[1:])

threading.Thread(target=tell).start()
"""


@needs_huge_pages
@pytest.mark.parametrize(
    ("environment", "tunables"),
    [
        ({}, "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"),
        ({"GLIBC_TUNABLES": "glibc.malloc.arena_max=8"}, "glibc.malloc.arena_max=8:glibc.malloc.hugetlb=1"),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, "glibc.malloc.hugetlb=0:glibc.malloc.arena_max=2"),
        ({"JAX_PLATFORMS": "cuda"}, "None"),
    ],
)
def test_program_restarts_with_huge_pages(tmp_path, environment, tunables):
    """256 MB are 65,536 pages of 4 KiB or 128 of 2 MiB; process id and arguments are unchanged."""
    (tmp_path / "program.py").write_text(PROGRAM)
    cleared = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    with subprocess.Popen(
        [sys.executable, tmp_path / "program.py", "--name=a b"],
        env={**cleared, "JAX_PLATFORMS": "cpu", **environment},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        faults, pid, new_pid, *arguments = process.communicate()[0].split()
    assert int(pid) == process.pid and new_pid == tunables and arguments[:2] == ["--name=a", "b"]
    assert (int(faults) < 2000) == tunables.endswith("hugetlb=1")


def run(program):
    command, environment = [sys.executable, "-c", program], {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()


FREED = """
import pathlib
import platform
import jax, numpy as np
from l2l_jax.utils.runtime import COMPILED, return_memory_after_compiling

def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20

return_memory_after_compiling()
blocks = [np.ones(10_000) for _ in range(4000)]  # 305 MiB, and something above them that stays
kept = np.ones(10_000)
used = resident()
del blocks
jax.monitoring.record_event_duration_secs(COMPILED, 0.1)
freed = resident()
jax.monitoring.record_event_duration_secs(COMPILED, 2.0)
print(used - freed, freed - resident())
"""


@needs_glibc
def test_memory_is_released_after_a_long_compilation():
    after_short, after_long = map(int, run(FREED))
    assert after_short < 30 and after_long > 270
