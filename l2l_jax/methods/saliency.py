"""Any method on only the weights that matter most for forgetting.

After "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency" (Fan et al., ICLR 2024): only
the weights with the largest gradient of the forget term, at the original weights, are trained. Starting from
fresh values of these weights is the idea of "Scissorhands" (Wu & Harandi, ECCV 2024).
"""

import dataclasses

import jax
import jax.numpy as jnp

from l2l_jax.methods.base import Objective
from l2l_jax.methods.undo import perturbed_start
from l2l_jax.models.base import Model, Params


def restrict(objective: Objective, model: Model, share: float, *, reset: bool = False) -> Objective:
    """Restrict an objective to the salient weights.

    Args:
      objective: Objective of a method.
      model: Model.
      share: Share of the trained weights that may change, in (0, 1]: those with the largest gradient of the
        forget term. 1 is no restriction.
      reset: Start from fresh values of these weights.

    Raises:
      ValueError: The share is out of range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"saliency is {share}; expected a share of the weights in (0, 1]")
    start = perturbed_start(model, dict.fromkeys(model.generative_parts, 1.0)) if reset else objective.start
    return dataclasses.replace(objective, saliency=share, start=start)


def largest(values: Params, share: float) -> Params:
    """Return a tree of bools: True for the largest entries, by absolute value, of all arrays together.

    The threshold is found by bisection on the bits of the absolute values, which have the same order: 31
    exact counts on arrays with any sharding, without sorting.

    Args:
      values: Tree of float32 arrays.
      share: Share of all entries, in (0, 1], rounded to at least one entry. Entries equal to the smallest of
        these are True as well; entries of 0 never are.

    Raises:
      ValueError: There are 2³² entries or more.
    """
    bits = jax.tree.map(lambda x: jax.lax.bitcast_convert_type(jnp.abs(x), jnp.uint32), values)
    total = sum(x.size for x in jax.tree.leaves(bits))
    if total >= 2**32:
        raise ValueError(f"{total} entries are too many to count in 32 bits")
    wanted = max(1, round(share * total))

    def halve(_, bounds):
        # At least `wanted` entries reach the lower bound, fewer the upper one.
        low, high = bounds
        middle = low + (high - low) // 2
        counts = [jnp.sum(x >= middle, dtype=jnp.uint32) for x in jax.tree.leaves(bits)]
        enough = sum(counts[1:], counts[0]) >= wanted
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low, _ = jax.lax.fori_loop(0, 31, halve, (jnp.uint32(0), jnp.uint32(2**31)))
    threshold = jnp.maximum(low, 1)
    return jax.tree.map(lambda x: x >= threshold, bits)
