"""Less memory for more work in the backward pass."""

import flax.linen as nn


def rematerialised(block: type[nn.Module], remat: bool) -> type[nn.Module]:
    """`block`; with `remat`, one that keeps only its input for the backward pass."""
    return nn.remat(block) if remat else block
