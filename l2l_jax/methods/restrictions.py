"""Restrictions of any method to some weights: the most salient weights, or an adapter.

Saliency is after "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency" (Fan et al., ICLR
2024): only the weights with the largest gradient of the forget term, at the original weights, are trained.
Reinitializing these weights follows "Scissorhands" (Wu & Harandi, ECCV 2024).
"""

import dataclasses

import jax
import numpy as np

from l2l_jax.methods.base import Objective
from l2l_jax.methods.undo import perturbed_start
from l2l_jax.models.adapters import ADAPTER, AdapterKind, Takes, merged, new_adapter, without_adapter
from l2l_jax.models.base import Model, Params


def restrict(objective: Objective, model: Model, share: float, *, reset: bool = False) -> Objective:
    """Restrict an objective to the most salient share, in (0, 1], of the trained weights.

    With `reset`, these weights are reinitialized.

    Raises:
      ValueError: The share is out of range, or the method needs the original weights.
    """
    if not 0 < share <= 1:
        raise ValueError(f"saliency is {share}; expected a share of the weights in (0, 1]")
    if reset and objective.one_shot is not None:
        raise ValueError("a method without training steps starts from the original: leave out saliency_reset")
    start = perturbed_start(model, dict.fromkeys(model.generative_parts, 1.0)) if reset else objective.start
    return dataclasses.replace(objective, saliency=share, start=start)


def largest(values: Params, share: float) -> Params:
    """Return a tree of boolean masks of the largest entries, by absolute value, over all arrays.

    The share of all entries, in (0, 1], is rounded to at least one entry. Entries equal to the smallest
    selected entry are also selected; zeros are not.
    """
    sizes = np.concatenate([np.abs(x).ravel() for x in jax.tree.leaves(values)])
    rank = sizes.size - max(1, round(share * sizes.size))
    threshold = np.partition(sizes, rank)[rank]
    return jax.tree.map(lambda x: (np.abs(x) >= threshold) & (x != 0), values)


def adapt(objective: Objective, kind: AdapterKind, rank: int, takes: Takes | None = None) -> Objective:
    """Train an adapter of the weights that an objective trains, and keep the weights themselves fixed.

    The gradient of the adapter follows from that of the weights by the chain rule; `look_ahead` therefore
    changes all weights. `kind`, `rank` and `takes` are arguments of `new_adapter`.

    Raises:
      ValueError: The objective starts from other weights, or trains only salient weights.
    """
    if objective.start is not None:
        raise ValueError("an adapter is added to the original weights, and this method starts from others")
    if objective.saliency < 1:
        raise ValueError("an adapter changes all weights that it is added to: saliency must be 1")
    parts = objective.trained

    @jax.jit
    def expand(trained: Params, frozen: Params) -> Params:
        adapted = without_adapter({**frozen, **trained})
        return {part: adapted[part] for part in parts}

    def start(params: Params, rng: jax.Array) -> Params:
        return {**params, ADAPTER: new_adapter({p: params[p] for p in parts}, kind, rank, rng, takes)}

    def merge(params: Params, trained: Params) -> Params:
        return {**merged(params, trained[ADAPTER]), **trained}

    return dataclasses.replace(
        objective,
        trained=(ADAPTER,),
        frozen=tuple(dict.fromkeys((*objective.frozen, *parts))),
        start=start,
        expand=expand,
        merge=merge,
        cast=lambda params: params,  # an adapter's small changes would be lost to rounding
    )
