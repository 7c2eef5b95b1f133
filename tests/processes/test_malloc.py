"""What malloc keeps, counted in page faults."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys, threading
from l2l_jax.processes.setup import keep_freed_memory, share_one_arena

keep_freed_memory()
share_one_arena(int(sys.argv[1]))
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def use(size):
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)

def faults(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    use(size)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def print_faults():
    use(MB := 2**20)
    for size in (16 * MB, 256 * MB):
        use(size)
        print(faults(size) * resource.getpagesize() // MB)

threading.Thread(target=print_faults).start()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
@pytest.mark.parametrize(("image_size", "again"), [(16, 256), (224, 0)])
def test_a_thread_keeps_its_temporaries(image_size, again):
    """MB that the kernel hands out when a thread asks for 16 and 256 MB a second time."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(image_size)],
        env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    small, large = map(int, done.stdout.split())
    assert small <= 1 and abs(large - again) <= 2
