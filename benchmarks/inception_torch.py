"""FID's Inception-v3 in PyTorch, as functions of a state dict, for comparison with the JAX version."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

NORM_EPSILON = 1e-3
ROW, COLUMN = (0, 3), (3, 0)
"""Padding of 1×7 and 7×1 convolutions."""


class Inception:
    """The network of pytorch-fid's checkpoint pt_inception-2015-12-05-6726825d.pth, in evaluation mode."""

    def __init__(self, state_dict: Mapping[str, torch.Tensor]):
        self._weights = state_dict

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Compute features `[batch, 2048]` of images `[batch, 3, height, width]` in [-1, 1]."""
        x = self._conv(x, "Conv2d_1a_3x3", stride=2)
        x = self._conv(x, "Conv2d_2a_3x3")
        x = F.max_pool2d(self._conv(x, "Conv2d_2b_3x3", padding=1), 3, 2)
        x = self._conv(x, "Conv2d_3b_1x1")
        x = F.max_pool2d(self._conv(x, "Conv2d_4a_3x3"), 3, 2)
        for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
            x = self._block_a(x, name)
        x = self._block_b(x, "Mixed_6a")
        for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
            x = self._block_c(x, name)
        x = self._block_d(x, "Mixed_7a")
        x = self._block_e(x, "Mixed_7b", _mean)
        x = self._block_e(x, "Mixed_7c", lambda y: F.max_pool2d(y, 3, 1, 1))
        return x.mean(dim=(2, 3))

    def _conv(self, x: torch.Tensor, name: str, stride: int = 1, padding: Any = 0) -> torch.Tensor:
        weights = self._weights
        x = F.conv2d(x, weights[f"{name}.conv.weight"], None, stride, padding)
        mean, var, scale, bias = (
            weights[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.relu_(F.batch_norm(x, mean, var, scale, bias, eps=NORM_EPSILON))

    def _branch(self, x: torch.Tensor, block: str, *convolutions: tuple[str, Any]) -> torch.Tensor:
        """Apply convolutions by name and padding."""
        for name, padding in convolutions:
            x = self._conv(x, f"{block}.{name}", padding=padding)
        return x

    def _block_a(self, x: torch.Tensor, block: str) -> torch.Tensor:
        return torch.cat(
            [
                self._branch(x, block, ("branch1x1", 0)),
                self._branch(x, block, ("branch5x5_1", 0), ("branch5x5_2", 2)),
                self._branch(x, block, ("branch3x3dbl_1", 0), ("branch3x3dbl_2", 1), ("branch3x3dbl_3", 1)),
                self._branch(_mean(x), block, ("branch_pool", 0)),
            ],
            dim=1,
        )

    def _block_b(self, x: torch.Tensor, block: str) -> torch.Tensor:
        deep = self._branch(x, block, ("branch3x3dbl_1", 0), ("branch3x3dbl_2", 1))
        return torch.cat(
            [
                self._conv(x, f"{block}.branch3x3", stride=2),
                self._conv(deep, f"{block}.branch3x3dbl_3", stride=2),
                F.max_pool2d(x, 3, 2),
            ],
            dim=1,
        )

    def _block_c(self, x: torch.Tensor, block: str) -> torch.Tensor:
        turns = zip(range(1, 6), (0, COLUMN, ROW, COLUMN, ROW), strict=True)
        deep = [(f"branch7x7dbl_{number}", padding) for number, padding in turns]
        return torch.cat(
            [
                self._branch(x, block, ("branch1x1", 0)),
                self._branch(x, block, ("branch7x7_1", 0), ("branch7x7_2", ROW), ("branch7x7_3", COLUMN)),
                self._branch(x, block, *deep),
                self._branch(_mean(x), block, ("branch_pool", 0)),
            ],
            dim=1,
        )

    def _block_d(self, x: torch.Tensor, block: str) -> torch.Tensor:
        wide = self._branch(x, block, ("branch3x3_1", 0))
        deep = self._branch(x, block, ("branch7x7x3_1", 0), ("branch7x7x3_2", ROW), ("branch7x7x3_3", COLUMN))
        return torch.cat(
            [
                self._conv(wide, f"{block}.branch3x3_2", stride=2),
                self._conv(deep, f"{block}.branch7x7x3_4", stride=2),
                F.max_pool2d(x, 3, 2),
            ],
            dim=1,
        )

    def _block_e(self, x: torch.Tensor, block: str, pool: Any) -> torch.Tensor:
        wide = self._branch(x, block, ("branch3x3_1", 0))
        deep = self._branch(x, block, ("branch3x3dbl_1", 0), ("branch3x3dbl_2", 1))
        halves = [(wide, "branch3x3_2"), (deep, "branch3x3dbl_3")]
        return torch.cat(
            [
                self._branch(x, block, ("branch1x1", 0)),
                *(
                    self._branch(y, block, (f"{name}{end}", padding))
                    for y, name in halves
                    for end, padding in (("a", (0, 1)), ("b", (1, 0)))
                ),
                self._branch(pool(x), block, ("branch_pool", 0)),
            ],
            dim=1,
        )


def _mean(x: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
