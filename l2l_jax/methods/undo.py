"""The method "undo"."""

import dataclasses
from typing import Annotated

import pydantic

from l2l_jax.losses import NoiseKind
from l2l_jax.methods.base import Method, Task, register
from l2l_jax.methods.deep import undo_task
from l2l_jax.methods.targets import BLUR, TargetKind
from l2l_jax.models.base import Model


@register("undo")
@dataclasses.dataclass(frozen=True)
class Undo(Method):
    """Perturb the weights, then rebuild the model from retain images.

    Attributes:
      perturb: Share of fresh weights in the start of the decoder.
      perturb_encoder: Share of fresh weights in the start of the encoder.
      distill: Weight of the original model's predictions against the truth, on retain images.
      target: Images that forget images are trained towards: "noise", "blur" (the image itself, blurred) or
        "mean" (the mean retain image of the batch).
      target_blur: Standard deviation of "blur" as a share of the image's side.
      noise: Noise shown to the teacher in place of forget images: "normal" (mean and standard deviation of
        the batch's pixels), "uniform" or "constant".
      feature_weight: Weight of the paper's forget loss on the encoder's features.
      forget_every: Use every k-th forget image of a batch.
    """

    perturb: Annotated[float, pydantic.Field(ge=0, le=1)] = 1.0
    perturb_encoder: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.0
    distill: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.5
    target: TargetKind = "noise"
    target_blur: Annotated[float, pydantic.Field(gt=0)] = BLUR
    noise: NoiseKind = "normal"
    feature_weight: Annotated[float, pydantic.Field(ge=0)] = 0.0
    forget_every: Annotated[int, pydantic.Field(ge=1)] = 1

    @property
    def batch_divisor(self) -> int:
        return self.forget_every

    def objective(self, model: Model) -> Task:
        return undo_task(model, **dataclasses.asdict(self))
