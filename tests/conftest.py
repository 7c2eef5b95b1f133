"""Every test runs on 8 virtual CPU devices and refuses silent rank promotion."""

import os
import tempfile

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs that several tests compile are compiled once; pytest's workers and tests' own processes inherit
# the folder.
if "PYTEST_XDIST_WORKER" not in os.environ:
    COMPILED = tempfile.TemporaryDirectory(prefix="l2l_jax_tests_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax  # noqa: E402  (the variables above must be set first)

jax.config.update("jax_numpy_rank_promotion", "raise")
