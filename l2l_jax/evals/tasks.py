"""Inpainting tasks by name, which define the masks at test time.

`centre_8`: a centered square of 8/16 of the side; `left_8`, `right_8`, `top_8`, `bottom_8`: a strip of 8/16
of the side; `border_3`: a border of 3/32 of the side on every side (outpainting); `random_75`: 75% of the
model's own patches, drawn for each image (masked autoencoders only).
"""

from __future__ import annotations  # jaxtyping is not needed at run time

import dataclasses
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, get_args

import numpy as np

from l2l_jax.masks import MASKS, MaskName

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

RANDOM = "random"
# Number of parts into which the side (for random patches: the image) is divided
PARTS = {**dict.fromkeys(get_args(MaskName), 16), "border": 32, RANDOM: 100}

GROUPS = {
    "paper": ("centre_8", "centre_4"),
    "inpainting": ("centre_4", "centre_8", "left_8", "right_8", "top_8", "bottom_8"),
    "outpainting": tuple(f"border_{width}" for width in range(1, 14)),
}
"""Groups of tasks by name; "paper" contains the tasks of the paper's two tables."""

LONGEST = 60  # maximum length of an alternative's name in file names, in characters


@dataclasses.dataclass(frozen=True)
class InpaintingTask:
    """A kind of mask and its size: `amount` of the `PARTS` of its kind.

    `alternative` names an alternative of the model, see `Model.alternatives`; "" is the model itself.
    """

    kind: str
    amount: int
    alternative: str = ""

    @property
    def name(self) -> str:
        """Return the name in `config.evaluate.tasks` and in file names."""
        alternative = re.sub(r"\W+", "_", self.alternative)[:LONGEST]
        return f"{self.kind}_{self.amount}" + (f"_{alternative}" if alternative else "")

    @property
    def title(self) -> str:
        """Return the name in reports."""
        title = f"{self.kind} {self.amount}/{PARTS[self.kind]}"
        if self.is_random:
            title = f"random patches, {self.amount} %"
        return f"{title}, {self.alternative}" if self.alternative else title

    @property
    def is_random(self) -> bool:
        """Return whether every image has a mask of its own, which consists of whole patches."""
        return self.kind == RANDOM

    def mask(self, size: int) -> Bool[np.ndarray, "size size"]:
        """Return the mask of all images, bool `[size, size]`, True where pixels are missing.

        Raises:
          ValueError: The mask does not fit images of this size.
        """
        width, rest = divmod(self.amount * size, PARTS[self.kind])
        if rest:
            raise ValueError(
                f"the task {self.name} hides {self.amount}/{PARTS[self.kind]} of {size} pixels, which is not "
                "a whole number"
            )
        try:
            return MASKS[self.kind](size, width)
        except ValueError as error:
            raise ValueError(f"the task {self.name}: {error}") from None

    def visible_patches(
        self, patches: int, seeds: Iterable[tuple[int, ...]]
    ) -> Int[np.ndarray, "image visible"]:
        """Draw the visible patches of each image, int32 `[image, visible]`, ascending.

        `seeds` are nonnegative integers for each image; equal seeds give equal patches.
        """
        hidden = round(patches * self.amount / PARTS[self.kind])
        if not 0 < hidden < patches:
            raise ValueError(f"the task {self.name} hides {hidden} of {patches} patches")
        rows = [np.random.default_rng(seed).permutation(patches)[hidden:] for seed in seeds]
        return np.sort(np.array(rows, np.int32).reshape(-1, patches - hidden), axis=1)


def patch_masks(
    visible: Int[np.ndarray, "image visible"], grid: int, size: int
) -> Bool[np.ndarray, "image size size"]:
    """Return masks of all patches except `visible_patches`, bool `[image, size, size]`."""
    hidden = np.ones((len(visible), grid * grid), bool)
    np.put_along_axis(hidden, visible, False, axis=1)
    side = size // grid
    return hidden.reshape(-1, grid, grid).repeat(side, axis=1).repeat(side, axis=2)


def parse_tasks(names: Iterable[str]) -> tuple[InpaintingTask, ...]:
    """Parse names of tasks or of `GROUPS`, without duplicates, in the given order.

    Raises:
      ValueError: A task does not exist, or there are no names.
    """
    tasks = dict.fromkeys(_parse(name) for given in names for name in GROUPS.get(given, (given,)))
    if not tasks:
        raise ValueError("tasks names none; centre_8 is the paper's first")
    return tuple(tasks)


def budget_task(names: Iterable[str]) -> InpaintingTask:
    """Return the first task with the same mask for all images, on which a retain budget is measured."""
    for task in parse_tasks(names):
        if not task.is_random:
            return task
    raise ValueError("a retain budget is measured in a mask that all images share, such as centre_8")


def _parse(name: str) -> InpaintingTask:
    match = re.fullmatch(r"([a-z]+)_([1-9]\d?)", name)
    if match is None or match[1] not in PARTS:
        kinds = ", ".join(f"{kind}_N" for kind in PARTS)
        raise ValueError(
            f"there is no task {name!r}; known: {kinds} (N/16 of the side; border: N/32; random: N % of the "
            f"patches), and the groups {', '.join(GROUPS)}"
        )
    return InpaintingTask(match[1], int(match[2]))
