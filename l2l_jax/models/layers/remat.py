"""Rematerialization: less memory for more work in the backward pass."""

from collections.abc import Callable

import flax.linen as nn
import jax


def remat_block(block: type[nn.Module], remat: bool) -> type[nn.Module]:
    """Return `block`; with `remat`, one that keeps only its input for the backward pass."""
    return nn.remat(block) if remat else block


def remat_body(body: Callable, remat: bool) -> Callable:
    """Return a body of a `jax.lax.scan` over blocks that keeps the results of products with parameters.

    Everything else, attention included, is computed again. With `remat` it keeps its input alone.
    """
    policies = jax.checkpoint_policies
    policy = policies.nothing_saveable if remat else policies.dots_with_no_batch_dims_saveable
    return jax.checkpoint(body, policy=policy, prevent_cse=False)  # a loop keeps the two apart anyway
