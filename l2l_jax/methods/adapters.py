"""Any method on a small adapter next to the original weights, which stay unchanged."""

import dataclasses

import jax

from l2l_jax.methods.base import Objective
from l2l_jax.models.adapters import ADAPTER, AdapterKind, merged, new_adapter, without_adapter
from l2l_jax.models.base import Params


def adapt(objective: Objective, kind: AdapterKind, rank: int) -> Objective:
    """Train an adapter of the weights that an objective trains.

    The gradient of the adapter follows from that of the weights by the chain rule, so that `look_ahead`
    changes all weights.

    Args:
      objective: Objective of a method that starts from the original weights.
      kind: "lora" or "norms", see `l2l_jax.models.adapters`.
      rank: Rank of "lora", at least 1.

    Raises:
      ValueError: The objective starts from other weights, or trains salient ones alone.
    """
    if objective.start is not None:
        raise ValueError("an adapter is added to the original weights, and this method starts from others")
    if objective.saliency < 1:
        raise ValueError("an adapter changes all weights that it is added to: saliency must be 1")
    parts = objective.trained

    @jax.jit
    def expand(trained: Params, frozen: Params) -> Params:
        whole = without_adapter({**frozen, **trained})
        return {part: whole[part] for part in parts}

    def start(params: Params, rng: jax.Array) -> Params:
        return {**params, ADAPTER: new_adapter({part: params[part] for part in parts}, kind, rank, rng)}

    def merge(params: Params, trained: Params) -> Params:
        return {**merged(params, trained[ADAPTER]), **trained}

    return dataclasses.replace(
        objective,
        trained=(ADAPTER,),
        frozen=tuple(dict.fromkeys((*objective.frozen, *parts))),
        start=start,
        expand=expand,
        merge=merge,
        cast=lambda params: params,  # an adapter's small change would be lost in rounded weights
    )
