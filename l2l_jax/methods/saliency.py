"""Any method on the weights alone that matter most for forgetting.

After "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency" (Fan et al., ICLR 2024): the
weights with the largest gradient of the forget loss, at the original weights, are trained; the others stay
what they are. Re-initialising the former first is the idea of "Scissorhands" (Wu & Harandi, ECCV 2024).
"""

import jax
import jax.numpy as jnp

from l2l_jax.methods.base import Task
from l2l_jax.methods.deep import perturbed_start
from l2l_jax.models.base import Model, Params


def salient_task(task: Task, model: Model, share: float, *, reset: bool = False) -> Task:
    """A task on the salient weights alone.

    Args:
      task: of any method, with a set "forget".
      model: the model.
      share: of the trained weights, those with the largest forget gradient, that may change, in (0, 1]; 1 is
        no restriction.
      reset: start from fresh values of these weights.

    Raises:
      ValueError: a share out of range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share of salient weights must lie in (0, 1], not {share}")
    fresh = perturbed_start(model, dict.fromkeys(model.generative_parts, 1.0))
    return task._replace(saliency=share, start=fresh if reset else task.start)


def largest(values: Params, share: float) -> Params:
    """Tree of bools: True for the entries of largest absolute value among those of all arrays together.

    The threshold is found by bisection on the bits of the numbers, which are ordered as their absolute values
    are: 31 counts, exact, without sorting, wherever the arrays lie.

    Args:
      values: tree of float32 arrays.
      share: of all entries, in (0, 1]; rounded to a whole number, at least one. Entries that equal the
        smallest of these are True as well; entries of 0 never are.

    Raises:
      ValueError: 2³² entries or more.
    """
    bits = jax.tree.map(lambda x: jax.lax.bitcast_convert_type(jnp.abs(x), jnp.uint32), values)
    total = sum(x.size for x in jax.tree.leaves(bits))
    if total >= 2**32:
        raise ValueError(f"{total} entries are too many to be counted in 32 bits")
    wanted = max(1, round(share * total))

    def halve(_, bounds):
        """At least `wanted` entries reach the lower bound, fewer the upper."""
        low, high = bounds
        middle = low + (high - low) // 2
        counts = [jnp.sum(x >= middle, dtype=jnp.uint32) for x in jax.tree.leaves(bits)]
        enough = sum(counts[1:], counts[0]) >= wanted
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low, _ = jax.lax.fori_loop(0, 31, halve, (jnp.uint32(0), jnp.uint32(2**31)))
    threshold = jnp.maximum(low, 1)
    return jax.tree.map(lambda x: x >= threshold, bits)
