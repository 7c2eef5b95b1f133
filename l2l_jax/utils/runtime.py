"""Process setup that must precede the first JAX computation."""

import contextlib
import ctypes
import functools
import os
import pathlib
import resource
import sys

from l2l_jax.errors import UserError

# Tunables of glibc 2.35 and later: at most two arenas, and transparent huge pages
MALLOC = "glibc.malloc.arena_max=2", "glibc.malloc.hugetlb=1"
# JAX's compilation event, and the minimum duration of a compilation that leaves much unused memory
COMPILED, LONG_SECONDS = "/jax/core/compile/backend_compile_duration", 1.0
# Device files under /dev of NVIDIA and AMD GPUs and of TPUs, old and new
ACCELERATORS = ("nvidia[0-9]*", "kfd", "accel[0-9]*", "vfio/[0-9]*")


def runs_on_cpu() -> bool:
    """Return whether JAX will probably run on the CPU, determined without starting it."""
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms:
        return platforms == "cpu"
    return not any(next(pathlib.Path("/dev").glob(files), None) for files in ACCELERATORS)


def usable_cpus() -> list[int]:
    """Return the CPUs available to this process, which `taskset`, Slurm and containers can restrict."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def tune_malloc() -> None:
    """Restart this program with `MALLOC`, because glibc reads tunables only at startup.

    On CPU, XLA allocates the temporaries of a step again for each call, and the kernel clears them page by
    page: 16,000 page faults in a step of the Fashion-MNIST MAE, 316,000 in a step of Palette with 2 + 2
    images of 128 pixels. Also, every new thread may get its own arena, which never releases memory: 1.6 GB at
    the end of the default run's audit, 1.2 GB with two arenas. Call this function before JAX is imported. It
    does nothing with an accelerator (its host only reads images), in a notebook, or on non-Linux systems.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    is_file = hasattr(sys.modules["__main__"], "__file__") and bool(sys.executable)
    if not (is_file and sys.platform.startswith("linux") and runs_on_cpu()) or "jax" in sys.modules:
        return
    missing = [tunable for tunable in MALLOC if tunable.partition("=")[0] not in tunables]
    if missing:
        environment = {**os.environ, "GLIBC_TUNABLES": ":".join(filter(None, (tunables, *missing)))}
        with contextlib.suppress(OSError):
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


@functools.cache
def return_memory_after_compiling() -> None:
    """Return free memory to the kernel after each long compilation.

    The compiler frees more memory than steps need afterwards: of 0.96 GiB after compiling the step of the
    Fashion-MNIST MAE, 0.36 GiB remain.
    """
    release = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if release is None or not (sys.platform.startswith("linux") and runs_on_cpu()):
        return
    import jax  # imported late to keep startup fast

    def trim(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == COMPILED and duration_secs >= LONG_SECONDS:
            release(0)

    jax.monitoring.register_event_duration_secs_listener(trim)


def home() -> pathlib.Path:
    """Return the user's home directory, or raise a UserError if there is none."""
    try:
        return pathlib.Path.home()
    except RuntimeError as error:
        raise UserError(
            "HOME is not set and this user has no home directory: set HOME to a folder for caches and "
            "weights."
        ) from error


def user_cache() -> pathlib.Path:
    """Return the cache folder: `$XDG_CACHE_HOME/l2l_jax`, by default `~/.cache/l2l_jax`."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or home() / ".cache") / "l2l_jax"


def keep_compiled_programs() -> None:
    """Enable JAX's persistent compilation cache in the user's cache folder.

    Raises:
      UserError: The folder cannot be created, or other users own it or can write to it; this is unsafe
        because cached programs are executed.
    """
    folder = user_cache() / "compiled"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder.stat()
    except OSError as error:
        raise UserError(f"--compile_cache: {folder} cannot be made ({error.strerror}).") from error
    if hasattr(os, "getuid") and (state.st_uid != os.getuid() or state.st_mode & 0o022):
        raise UserError(
            f"--compile_cache: {folder} belongs to others or can be written by them, and its programs are "
            "executed: delete it, or set XDG_CACHE_HOME to a folder of your own."
        )
    import jax  # imported late to keep startup fast

    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def check_backend() -> None:
    """Start JAX on its devices, or raise a UserError if JAX_PLATFORMS cannot be used."""
    import jax  # imported late to keep startup fast

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        name = next((n for n in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME") if os.environ.get(n)), None)
        if name is None:
            raise
        reason = str(error).partition(" (set JAX_PLATFORMS")[0] or "no plugin for it is installed"
        raise UserError(
            f"{name}={os.environ[name]}: JAX cannot start on this platform "
            f"({' '.join(reason.split())[:300]}). Install JAX for that device, or unset {name} to use the "
            "devices that are found."
        ) from error


def peak_memory() -> float:
    """Return the peak memory of this process so far, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
