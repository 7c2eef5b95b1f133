"""Comparison of methods, settings and sequences of forget requests: `python -m l2l_jax.compare`."""
