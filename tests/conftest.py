"""Every test runs on 8 virtual CPU devices and refuses silent rank promotion."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402  (the flags above must be set first)

jax.config.update("jax_numpy_rank_promotion", "raise")
