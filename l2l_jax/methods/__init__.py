# ruff: noqa: I001  (tables list the methods in the order of their import)
"""Unlearning methods: a registered options class each, and the objective that a training step computes."""

from l2l_jax.methods import (  # noqa: F401  (each registers a method)
    encoder,
    max_loss,
    noisy_label,
    retain_label,
    random_encoder,
    epsilon,
    whole,
    undo,
    relearn_aware,
)
from l2l_jax.methods.adapters import adapt
from l2l_jax.methods.base import METHODS, Method, Objective, register
from l2l_jax.methods.saliency import restrict
from l2l_jax.models.adapters import AdapterKind
from l2l_jax.models.base import Model

__all__ = ["METHODS", "Method", "Objective", "make_objective", "register"]


def make_objective(
    method: Method,
    model: Model,
    *,
    saliency: float = 1.0,
    saliency_reset: bool = False,
    adapter: AdapterKind = "",
    adapter_rank: int = 8,
) -> Objective:
    """Return the objective of a method, if asked for on salient weights or an adapter alone.

    Args:
      method: Method with its options.
      model: Model to unlearn.
      saliency: Share of the trained weights that may change, see `l2l_jax.methods.saliency`.
      saliency_reset: Start from fresh values of these weights.
      adapter: Kind of adapter to train, see `l2l_jax.models.adapters`; "": train the weights.
      adapter_rank: Rank of "lora".

    Raises:
      ValueError: A value is out of range, or the options do not go together.
    """
    objective = restrict(method.objective(model), model, saliency, reset=saliency_reset)
    return adapt(objective, adapter, adapter_rank) if adapter else objective
