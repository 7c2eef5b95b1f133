"""The unlearning methods by name."""

from collections.abc import Callable
from typing import Literal

from l2l_jax.models.base import ImageToImageModel
from l2l_jax.objectives.baselines import (
    max_loss_task,
    noisy_label_task,
    random_encoder_task,
    retain_label_task,
)
from l2l_jax.objectives.noise import NoiseKind
from l2l_jax.objectives.task import Task, encoder_task

Method = Literal["encoder", "max_loss", "noisy_label", "retain_label", "random_encoder"]

METHODS: dict[str, Callable[..., Task]] = {
    "encoder": encoder_task,
    "max_loss": max_loss_task,
    "noisy_label": noisy_label_task,
    "retain_label": retain_label_task,
    "random_encoder": random_encoder_task,
}
"""Builders of tasks: the paper's method first, then those it is compared with."""


def make_task(method: Method, model: ImageToImageModel, *, alpha: float, noise: NoiseKind) -> Task:
    """The task of unlearning by a method.

    Args:
      method: a key of `METHODS`.
      model: the model.
      alpha: weight of the forget term.
      noise: kind of the noise images that "encoder" shows its teacher; the other methods have
        none or, by definition, Gaussian noise.

    Raises:
      ValueError: an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    own = {"noise": noise} if method == "encoder" else {}
    return METHODS[method](model, alpha=alpha, **own)
