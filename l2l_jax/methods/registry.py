"""The unlearning methods by name."""

import inspect
from collections.abc import Callable
from typing import Any, Literal

from l2l_jax.methods.adapters import AdapterKind, adapted_task
from l2l_jax.methods.base import Task
from l2l_jax.methods.baselines import (
    encoder_task,
    max_loss_task,
    noisy_label_task,
    random_encoder_task,
    retain_label_task,
)
from l2l_jax.methods.constrained import epsilon_task
from l2l_jax.methods.deep import relearn_aware_task, undo_task, whole_task
from l2l_jax.methods.saliency import salient_task
from l2l_jax.models.base import ImageToImageModel

Method = Literal[
    "encoder",
    "max_loss",
    "noisy_label",
    "retain_label",
    "random_encoder",
    "epsilon",
    "whole",
    "undo",
    "relearn_aware",
]

METHODS: dict[str, Callable[..., Task]] = {
    "encoder": encoder_task,
    "max_loss": max_loss_task,
    "noisy_label": noisy_label_task,
    "retain_label": retain_label_task,
    "random_encoder": random_encoder_task,
    "epsilon": epsilon_task,
    "whole": whole_task,
    "undo": undo_task,
    "relearn_aware": relearn_aware_task,
}
"""Builders of tasks: the paper's method first, then those it is compared with, then those that go deeper. A
builder takes the model and those of the options of `l2l_jax.config.UnlearningConfig` that it names."""


def make_task(
    method: Method, model: ImageToImageModel, *, saliency: float = 1.0, saliency_reset: bool = False,
    adapter: AdapterKind = "", adapter_rank: int = 8, **options: Any,
) -> Task:  # fmt: skip
    """The task of unlearning by a method.

    Args:
      method: a key of `METHODS`.
      model: the model.
      saliency, saliency_reset: of any method, see `l2l_jax.methods.saliency.salient_task`.
      adapter, adapter_rank: of any method, see `l2l_jax.methods.adapters.adapted_task`; "": none.
      **options: of methods, such as `noise` or `target`; those that this one does not name are not used.

    Raises:
      ValueError: an unknown method, an option that no method has, or one out of range; options that do not go
        together.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    unknown = set(options) - all_options()
    if unknown:
        raise ValueError(f"no method has an option {min(unknown)!r}")
    own = {name: value for name, value in options.items() if name in option_names(method)}
    task = salient_task(METHODS[method](model, **own), model, saliency, reset=saliency_reset)
    return adapted_task(task, adapter, adapter_rank) if adapter else task


def option_names(method: str) -> tuple[str, ...]:
    """The options that a method has of its own."""
    return tuple(inspect.signature(METHODS[method]).parameters)[1:]


def all_options() -> set[str]:
    """The names of all options that `make_task` takes."""
    parameters = inspect.signature(make_task).parameters.values()
    common = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    return common.union(*map(option_names, METHODS))
