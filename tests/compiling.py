"""Quick compilation of tests; nothing here imports JAX, which reads these settings when it is imported."""

import gc
import importlib.util
import mmap
import os
import pathlib
import subprocess
import sys
import tempfile

QUICK = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)
"""Flags of XLA that cut the time to compile on CPU to a quarter; results change by rounding alone."""


def compile_quickly() -> tempfile.TemporaryDirectory | None:
    """Set the environment for JAX; return the folder of compiled programs, unless one is named there."""
    flags = QUICK if _known(QUICK) else [flag for flag in QUICK if _known([flag])]
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags]).strip()
    compiled = None
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        compiled = tempfile.TemporaryDirectory(prefix="l2l_jax_tests_")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # many small programs count, too
    for library in ("OMP", "OPENBLAS"):  # a worker for each core: more threads only wait for one another
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")
    return compiled


def collect_garbage_rarely() -> None:
    """In this process: tracing makes objects by the million, and little garbage."""
    gc.set_threshold(200_000, 20, 100)


def _known(flags) -> bool:
    """Whether the installed XLA has these flags: it ends a process that names others."""
    if all(_named(flag.lstrip("-").partition("=")[0]) for flag in flags):
        return True
    environment = {**os.environ, "XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    return subprocess.run(command, env=environment, capture_output=True).returncode == 0


def _named(flag) -> bool:
    """Whether jaxlib's libraries hold the name of a flag as a string of its own; faster than starting JAX."""
    spec = importlib.util.find_spec("jaxlib")
    for library in pathlib.Path(spec.origin).parent.glob("*.so") if spec else ():
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(f"\0{flag}\0".encode()) >= 0:
                return True
    return False


def flags_of_one_device() -> str:
    """XLA_FLAGS for a process with one device: of two that say the same, the last counts."""
    return f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"
