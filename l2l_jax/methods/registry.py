# ruff: noqa: I001  (tables list the methods in the order of their import)
"""The built-in methods, and what turns a method into what a training step does."""

import dataclasses
from typing import Any

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
from l2l_jax.methods.adapters import AdapterKind, adapted_task
from l2l_jax.methods.base import METHODS, Method, Task
from l2l_jax.methods.saliency import salient_task
from l2l_jax.models.base import Model


def make_objective(
    method: Method,
    model: Model,
    *,
    saliency: float = 1.0,
    saliency_reset: bool = False,
    adapter: AdapterKind = "",
    adapter_rank: int = 8,
) -> Task:
    """Return what a training step of a method does, on salient weights or an adapter alone if asked for.

    Args:
      method: The method and its options.
      model: The model.
      saliency: Share of the trained weights that may change, see `l2l_jax.methods.saliency`.
      saliency_reset: Start from fresh values of these weights.
      adapter: Kind of adapter to train, see `l2l_jax.methods.adapters`; "": train the weights.
      adapter_rank: Rank of "lora".

    Raises:
      ValueError: A value is out of range, or the options do not go together.
    """
    task = salient_task(method.objective(model), model, saliency, reset=saliency_reset)
    return adapted_task(task, adapter, adapter_rank) if adapter else task


def make_task(method: str, model: Model, **options: Any) -> Task:
    """Return `make_objective` of a method's name and flat options; those of other methods are not used."""
    own = {name: value for name, value in options.items() if name in option_names(method)}
    common = {name: options[name] for name in COMMON if name in options}
    unknown = set(options) - all_options()
    if unknown:
        raise ValueError(f"no method has an option {min(unknown)!r}")
    return make_objective(METHODS[method](**own), model, **common)


COMMON = ("saliency", "saliency_reset", "adapter", "adapter_rank")


def option_names(method: str) -> tuple[str, ...]:
    """The options that a method has of its own."""
    return tuple(field.name for field in dataclasses.fields(METHODS[method]))


def all_options() -> set[str]:
    """The names of all options that `make_task` takes."""
    return set(COMMON).union(*map(option_names, METHODS))
