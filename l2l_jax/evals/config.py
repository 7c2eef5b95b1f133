"""Config of the evaluation: tasks, metrics and example images."""

import dataclasses
from typing import Annotated, Any, Literal, Protocol

import pydantic

from l2l_jax.data.config import DataConfig
from l2l_jax.evals.tasks import parse_tasks
from l2l_jax.models.base import Model

Positive = Annotated[int, pydantic.Field(ge=1)]
NetworkName = Literal["inception", "resnet50", "clip"]
Resizing = Literal["clean-fid", "pytorch-fid"]


def split_names(given: Any) -> Any:
    """Split names that are joined by commas, as on the command line."""
    given = (given,) if isinstance(given, str) else given
    if not isinstance(given, tuple | list) or not all(isinstance(part, str) for part in given):
        return given
    return tuple(name for part in given for name in part.split(",") if name)


# Names; "a,b" is the same as ("a", "b")
Names = Annotated[tuple[str, ...], pydantic.BeforeValidator(split_names)]


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Tasks, metrics and example images of an evaluation.

    Attributes:
      networks: Published networks whose features are compared: "inception" (FID, KID and Inception Score),
        "resnet50" (Inception Score of scenes), "clip" (similarity of reconstruction and original). Networks
        with missing weights are reported. "a,b" is the same as ("a", "b").
      inception, resnet50, clip: Files of their weights; empty for the published file in the folder of
        weights, see docs/reference/feature_networks.md.
      resize: Resizing of images for Inception: "clean-fid" (Pillow's bicubic filter) or "pytorch-fid"
        (bilinear, without antialiasing).
      network_batch_size: Number of images per compiled call of a network; fewer on CPUs with several cores.
      tasks: Names of masks, see `l2l_jax.evals.tasks`: for example "centre_8", "border_3" and "random_75",
        or "paper", "inpainting", "outpainting". The report and its images show the first task.
      batch_size: Number of images inpainted per compiled call and stored together on disk.
      picture_per_class: Number of example images per class in the report, for at most 10 classes of a set.
      features: "classifier" trains a small classifier for images outside the domain of the published
        networks; "none" trains no classifier.
      write_images: Write originals and reconstructions as PNG files to `evaluation/images` in the workdir.
    """

    networks: Annotated[tuple[NetworkName, ...], pydantic.BeforeValidator(split_names)] = ()
    inception: str = ""
    resnet50: str = ""
    clip: str = ""
    resize: Resizing = "clean-fid"
    network_batch_size: Positive = 32
    tasks: Names = ("centre_8",)
    batch_size: Positive = 128
    picture_per_class: Positive = 2
    features: Literal["classifier", "none"] = "classifier"
    write_images: bool = False

    def __post_init__(self):
        parse_tasks(self.tasks)

    def check(self, model: Model) -> None:
        """Raise a ValueError unless the model supports all tasks."""
        for task in parse_tasks(self.tasks):
            if not task.is_random:
                task.mask(model.image_size)
            elif not model.inpaints_from_patches:
                raise ValueError(f"the task {task.name} is for masked autoencoders (config.model.family mae)")
            else:
                task.visible_patches(model.grid**2, [(0,)])


class EvaluationSetup(Protocol):
    """Config sections that an evaluation depends on; `Config` implements this protocol."""

    @property
    def seed(self) -> int: ...  # noqa: D102
    @property
    def model(self) -> Model: ...  # noqa: D102
    @property
    def data(self) -> DataConfig: ...  # noqa: D102
    @property
    def evaluate(self) -> EvaluationConfig: ...  # noqa: D102
