"""Which feature networks judge restorations, and where their weights are."""

import dataclasses
from typing import Annotated, Any, Literal

import pydantic

NetworkName = Literal["inception", "resnet50", "clip"]

Resizing = Literal["clean-fid", "pytorch-fid"]


def _names(given: Any) -> Any:
    """Names that are joined by commas, as people write them on the command line, one by one."""
    given = (given,) if isinstance(given, str) else given
    if not isinstance(given, tuple | list) or not all(isinstance(part, str) for part in given):
        return given
    return tuple(name for part in given for name in part.split(",") if name)


@dataclasses.dataclass(frozen=True)
class NetworksConfig:
    """The published networks whose features are compared.

    Attributes:
      networks: which are used, where their weights are found: "inception" (FID, KID and Inception Score),
        "resnet50" (Inception Score of scenes), "clip" (similarity of restored and original). "a,b" is the
        same as ("a", "b").
      inception, resnet50, clip: files of their weights; empty: the published file in the folder of weights,
        see docs/reference/feature_networks.md.
      resize: how images come to Inception's size: "clean-fid" (Pillow's bicubic filter) or "pytorch-fid"
        (bilinear, without antialiasing).
      network_batch_size: images per compiled call of a network; on a CPU with several cores fewer.
    """

    networks: Annotated[tuple[NetworkName, ...], pydantic.BeforeValidator(_names)] = ()
    inception: str = ""
    resnet50: str = ""
    clip: str = ""
    resize: Resizing = "clean-fid"
    network_batch_size: Annotated[int, pydantic.Field(ge=1)] = 32
