"""Needs of a config's programs on an accelerator, without one: `python -m l2l_jax.plan`."""
