"""Inpainting tasks by name: what is masked at test time.

`centre_8`: a centred square of 8/16 of the side; `left_8`, `right_8`, `top_8`, `bottom_8`: a strip of 8/16
of the side; `border_3`: a border of 3/32 of the side on every side (outpainting); `random_75`: 75 % of the
model's own patches, drawn anew for each image (masked autoencoders only).
"""

import dataclasses
import re
from collections.abc import Iterable
from typing import get_args

import numpy as np

from l2l_jax.masks import MASKS, MaskName

RANDOM = "random"
# Into how many parts the side (of random patches: the image) is divided
PARTS = {**dict.fromkeys(get_args(MaskName), 16), "border": 32, RANDOM: 100}

GROUPS = {
    "paper": ("centre_8", "centre_4"),
    "inpainting": ("centre_4", "centre_8", "left_8", "right_8", "top_8", "bottom_8"),
    "outpainting": tuple(f"border_{width}" for width in range(1, 14)),
}
"""Tasks under one name; "paper" are those of the paper's two tables."""

LONGEST = 60  # characters of an alternative's name in the names of files, at most


@dataclasses.dataclass(frozen=True)
class InpaintingTask:
    """One way to mask a part of an image: so many of the `PARTS` of its kind.

    `alternative` is the way to run the model, see `Model.alternatives`; "": the model itself.
    """

    kind: str
    amount: int
    alternative: str = ""

    @property
    def name(self) -> str:
        """Name in `config.evaluate.tasks`, and of files."""
        alternative = re.sub(r"\W+", "_", self.alternative)[:LONGEST]
        return f"{self.kind}_{self.amount}" + (f"_{alternative}" if alternative else "")

    @property
    def title(self) -> str:
        """Name in reports."""
        title = f"{self.kind} {self.amount}/{PARTS[self.kind]}"
        if self.is_random:
            title = f"random patches, {self.amount} %"
        return f"{title}, {self.alternative}" if self.alternative else title

    @property
    def is_random(self) -> bool:
        """Whether every image has a mask of its own, made of whole patches."""
        return self.kind == RANDOM

    def mask(self, size: int) -> np.ndarray:
        """Return the mask of all images, bool `[size, size]`, True where pixels are missing.

        Raises:
          ValueError: It does not fit images of this size.
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

    def visible_patches(self, patches: int, seeds: Iterable[tuple[int, ...]]) -> np.ndarray:
        """Return the patches that stay visible in each image, int32 `[image, visible]`, ascending.

        Equal seeds, non-negative integers of each image, make equal choices.
        """
        hidden = round(patches * self.amount / PARTS[self.kind])
        if not 0 < hidden < patches:
            raise ValueError(f"the task {self.name} hides {hidden} of {patches} patches")
        rows = [np.random.default_rng(seed).permutation(patches)[hidden:] for seed in seeds]
        return np.sort(np.array(rows, np.int32).reshape(-1, patches - hidden), axis=1)


def patch_masks(visible: np.ndarray, grid: int, size: int) -> np.ndarray:
    """Return the pixels of patches that are not `visible_patches`, bool `[image, size, size]`."""
    hidden = np.ones((len(visible), grid * grid), bool)
    np.put_along_axis(hidden, visible, False, axis=1)
    side = size // grid
    return hidden.reshape(-1, grid, grid).repeat(side, axis=1).repeat(side, axis=2)


def parse_tasks(names: Iterable[str]) -> tuple[InpaintingTask, ...]:
    """Parse names of tasks or those of `GROUPS`, each once, in the order given.

    Raises:
      ValueError: There is no such task, or none at all.
    """
    tasks = dict.fromkeys(_parse(name) for given in names for name in GROUPS.get(given, (given,)))
    if not tasks:
        raise ValueError("tasks names none; centre_8 is the paper's first")
    return tuple(tasks)


def budget_task(names: Iterable[str]) -> InpaintingTask:
    """Return the first task whose mask is the same for all images: a retain budget is measured at it."""
    for task in parse_tasks(names):
        if not task.is_random:
            return task
    raise ValueError("a retain budget is measured in a mask that all images share, such as centre_8")


def _parse(name: str) -> InpaintingTask:
    match = re.fullmatch(r"([a-z]+)_([1-9]\d?)", name)
    if match is None or match[1] not in PARTS:
        known = ", ".join(f"{kind}_N" for kind in PARTS)
        raise ValueError(
            f"there is no task {name!r}; known: {known} (N/16 of the side; border: N/32; random: N % of the "
            f"patches), and the groups {', '.join(GROUPS)}"
        )
    return InpaintingTask(match[1], int(match[2]))
