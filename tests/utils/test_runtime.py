"""Compiled programs kept where only the user can write, and malloc's arenas and freed memory."""

import os
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


def test_programs_are_found_again(tmp_path):
    compilation_cache.reset_cache()
    keep_compiled_programs()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    assert jax.jit(lambda x: jnp.sin(x) + 12345)(0.0) == 12345
    folder = tmp_path / "l2l_jax" / "compiled"
    assert any(folder.iterdir())
    assert folder.stat().st_mode & 0o077 == 0


def test_a_file_or_a_folder_that_others_may_write_to_is_refused(tmp_path):
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

PROGRAM = """
import ctypes, resource, sys, threading
from l2l_jax.utils.runtime import keep_freed_memory, share_one_arena

keep_freed_memory()
share_one_arena(int(sys.argv[1]))
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
libc.free.argtypes, libc.sbrk.argtypes = [ctypes.c_void_p], [ctypes.c_ssize_t]
SIZE = 256 * 2**20

def use():
    block = libc.malloc(SIZE)
    of_main_arena = block < libc.sbrk(0)
    ctypes.memset(block, 1, SIZE)
    libc.free(block)
    return of_main_arena

def tell():
    use()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    print(use(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

threading.Thread(target=tell).start()
"""


def run(program, *arguments):
    """The words that a program prints."""
    command, environment = [sys.executable, "-c", program, *arguments], {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()


@needs_glibc
@pytest.mark.parametrize(("image_size", "shared"), [(16, False), (64, True)])
def test_threads_share_the_main_arena_where_images_are_large(image_size, shared):
    """A thread asks for 256 MB, more than its own arena can hold; what the main arena gave, it keeps."""
    of_main_arena, faults = run(PROGRAM, str(image_size))
    assert of_main_arena == str(shared) and (not shared or int(faults) < 50)


FREED = """
import pathlib
import jax, numpy as np
from l2l_jax.utils.runtime import COMPILED, keep_freed_memory, return_memory_after_compiling

def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20

keep_freed_memory()
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
def test_memory_goes_back_to_the_kernel_after_a_long_compilation():
    after_short, after_long = map(int, run(FREED))
    assert after_short < 30 and after_long > 270
