"""The part of the configuration that says what is restored and measured."""

import dataclasses
from typing import Annotated, Literal

import pydantic

from l2l_jax.evals.features.config import NetworksConfig
from l2l_jax.evals.tasks import parse_tasks
from l2l_jax.models.base import Model

Positive = Annotated[int, pydantic.Field(ge=1)]

TaskNames = Annotated[
    tuple[str, ...],
    pydantic.BeforeValidator(
        lambda given: tuple(filter(None, given.split(","))) if isinstance(given, str) else given
    ),
]
"""Names of tasks; "a,b" is the same as ("a", "b")."""


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(NetworksConfig):
    """What is restored, what is measured, and what the picture shows.

    Attributes:
      tasks: what is hidden, see `l2l_jax.evals.tasks`: names such as "centre_8", "border_3" and
        "random_75", or "paper", "inpainting", "outpainting". The report and its pictures show the first.
      batch_size: images restored per compiled call, and kept together on the disk.
      picture_per_class: images of each class in the picture, of at most 10 classes of a set.
      features: "classifier": a small one, trained on the spot, measures what the published networks are
        not meant for, few classes of small images; "none": its figures are left out.
      networks, inception, resnet50, clip, resize, network_batch_size: see `NetworksConfig`.
      write_images: write originals and restorations as PNG into `evaluation/images` of the workdir.
    """

    tasks: TaskNames = ("centre_8",)
    batch_size: Positive = 128
    picture_per_class: Positive = 2
    features: Literal["classifier", "none"] = "classifier"
    write_images: bool = False

    def __post_init__(self):
        parse_tasks(self.tasks)

    def check(self, model: Model) -> None:
        """Raise a ValueError unless the model can be given all tasks."""
        for task in parse_tasks(self.tasks):
            if not task.is_random:
                task.mask(model.image_size)
            elif not model.inpaints_from_patches:
                raise ValueError(f"the task {task.name} is for masked autoencoders (config.model.family mae)")
            else:
                task.visible_patches(model.grid**2, [(0,)])
