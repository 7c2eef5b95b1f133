"""Comparison of results across machines: `python -m l2l_jax.portability record FILE`, then `compare FILE`."""
