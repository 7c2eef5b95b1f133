"""Resource estimates for a config's programs on absent accelerators: `python -m l2l_jax.plan`."""
