"""Measurements of speed: `python -m l2l_jax.benchmark NAME …`; they are reported, never asserted."""
