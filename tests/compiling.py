"""Settings for fast compilation in tests; must not import JAX, which reads them when it is imported."""

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
"""XLA flags that reduce the compile time on CPU to a quarter; results change only by rounding."""


def compile_quickly() -> tempfile.TemporaryDirectory | None:
    """Set the environment for JAX; return the folder of compiled programs, unless one is set already."""
    flags = QUICK if _known(QUICK) else [flag for flag in QUICK if _known([flag])]
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags]).strip()
    compiled = None
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        compiled = tempfile.TemporaryDirectory(prefix="l2l_jax_tests_")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # also cache small programs
    for library in ("OMP", "OPENBLAS"):  # one thread per worker avoids contention
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")
    return compiled


def collect_garbage_rarely() -> None:
    """Collect garbage less often in this process, because tracing creates many objects but little garbage."""
    gc.set_threshold(200_000, 20, 100)


def _known(flags) -> bool:
    """Return whether the installed XLA supports these flags; it aborts a process on unknown flags."""
    if all(_named(flag.lstrip("-").partition("=")[0]) for flag in flags):
        return True
    environment = {**os.environ, "XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    return subprocess.run(command, env=environment, capture_output=True).returncode == 0


def _named(flag) -> bool:
    """Return whether jaxlib's libraries contain the name of a flag as a string; faster than starting JAX."""
    spec = importlib.util.find_spec("jaxlib")
    for library in pathlib.Path(spec.origin).parent.glob("*.so") if spec else ():
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(f"\0{flag}\0".encode()) >= 0:
                return True
    return False


def flags_of_one_device() -> str:
    """Return XLA_FLAGS for a process with one device; the last of repeated flags takes effect."""
    return f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"
