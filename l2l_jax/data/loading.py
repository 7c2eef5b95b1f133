"""How images are read: the part of `config.data` that chooses no images."""

import dataclasses
from typing import Annotated

import pydantic

from l2l_jax.data.transforms import Scale, TransformConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadingConfig(TransformConfig):
    """How images are read: the fields of `TransformConfig`, and

    Attributes:
      proxy_crop_scale: `crop_scale` of proxy images; None: the same. The paper has (0.2, 0.5) for COCO.
      workers: processes that read and decode training images; 0: threads of this process.
      max_bad_fraction: share of the images of a set that may be impossible to decode before the run stops.
    """

    proxy_crop_scale: Scale | None = None
    workers: Annotated[int, pydantic.Field(ge=0, le=1024)] = 0
    max_bad_fraction: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.01

    @property
    def proxy_transform(self) -> TransformConfig:
        """How proxy images become squares."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(TransformConfig)}
        return TransformConfig(**values | {"crop_scale": self.proxy_crop_scale or self.crop_scale})
