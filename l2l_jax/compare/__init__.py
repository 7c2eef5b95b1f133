"""Methods, settings and sequences of requests side by side: `python -m l2l_jax.compare`."""
