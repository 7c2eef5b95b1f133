"""Does another machine compute the same? `python -m l2l_jax.portability record FILE`, then `compare FILE`."""
