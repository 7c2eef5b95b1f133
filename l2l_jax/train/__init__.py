"""The training loop and what runs in it."""
