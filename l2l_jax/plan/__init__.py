"""What a recipe's programs need on an accelerator, without one: `python -m l2l_jax.plan`."""
