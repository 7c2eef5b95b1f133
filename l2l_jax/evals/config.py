"""The section of the configuration that says what is inpainted and measured."""

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
    """Tasks, metrics and pictures of an evaluation.

    Attributes:
      networks: Published networks whose features are compared: "inception" (FID, KID and Inception Score),
        "resnet50" (Inception Score of scenes), "clip" (similarity of reconstruction and original); those
        whose weights are missing are reported. "a,b" is the same as ("a", "b").
      inception, resnet50, clip: Files of their weights; empty: the published file in the folder of weights,
        see docs/reference/feature_networks.md.
      resize: How images come to Inception's size: "clean-fid" (Pillow's bicubic filter) or "pytorch-fid"
        (bilinear, without antialiasing).
      network_batch_size: Images per compiled call of a network; on a CPU with several cores fewer.
      tasks: What is masked, see `l2l_jax.evals.tasks`: names such as "centre_8", "border_3" and
        "random_75", or "paper", "inpainting", "outpainting". The report and its pictures show the first.
      batch_size: Images inpainted per compiled call, and stored together on disk.
      picture_per_class: Images of each class in the picture, of at most 10 classes of a set.
      features: "classifier": a small one, trained on the spot, measures images that the published networks
        are not meant for; "none": no classifier.
      write_images: Write originals and reconstructions as PNG into `evaluation/images` of the workdir.
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
        """Raise a ValueError unless the model can be given all tasks."""
        for task in parse_tasks(self.tasks):
            if not task.is_random:
                task.mask(model.image_size)
            elif not model.inpaints_from_patches:
                raise ValueError(f"the task {task.name} is for masked autoencoders (config.model.family mae)")
            else:
                task.visible_patches(model.grid**2, [(0,)])


class EvaluationSetup(Protocol):
    """Sections that an evaluation depends on; an experiment's `Config` is one."""

    @property
    def seed(self) -> int: ...  # noqa: D102
    @property
    def model(self) -> Model: ...  # noqa: D102
    @property
    def data(self) -> DataConfig: ...  # noqa: D102
    @property
    def evaluate(self) -> EvaluationConfig: ...  # noqa: D102
