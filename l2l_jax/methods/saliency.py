"""Any method on only the weights that matter most for forgetting.

After "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency" (Fan et al., ICLR 2024): only
the weights with the largest gradient of the forget term, at the original weights, are trained. Starting from
fresh values of these weights is the idea of "Scissorhands" (Wu & Harandi, ECCV 2024).
"""

import dataclasses

import jax
import numpy as np

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

    Args:
      values: Tree of host arrays.
      share: Share of all entries, in (0, 1], rounded to at least one entry. Entries equal to the smallest of
        these are True as well; entries of 0 never are.
    """
    sizes = np.concatenate([np.abs(x).ravel() for x in jax.tree.leaves(values)])
    rank = sizes.size - max(1, round(share * sizes.size))
    threshold = np.partition(sizes, rank)[rank]
    return jax.tree.map(lambda x: (np.abs(x) >= threshold) & (x != 0), values)
