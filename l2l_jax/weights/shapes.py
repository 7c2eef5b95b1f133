"""Reading a model's sizes off the shapes of a state dict."""

import re
from collections.abc import Mapping
from typing import Any

from l2l_jax.errors import UserError


def shape_of(state_dict: Mapping[str, Any], key: str, rank: int) -> tuple[int, ...]:
    """Shape of the array `key`, which has `rank` axes, all longer than 0.

    Raises:
      UserError: it is missing, or has another number of axes.
    """
    if key not in state_dict:
        raise UserError(f"the size of the model cannot be told: {key} is missing.")
    shape = tuple(state_dict[key].shape)
    if len(shape) != rank or 0 in shape:
        raise UserError(f"the size of the model cannot be told: {key} has shape {shape}.")
    return shape


def count(state_dict: Mapping[str, Any], template: str) -> int:
    """How many different numbers stand at the place of `{i}` at the start of the keys."""
    before, after = (re.escape(part) for part in template.split("{i}"))
    pattern = re.compile(rf"{before}(\d+){after}")
    return len({match[1] for match in map(pattern.match, state_dict) if match})


def square_side(places: int, key: str) -> int:
    """Side of a square of `places` places.

    Raises:
      UserError: there is no such square.
    """
    side = round(places**0.5)
    if side < 1 or side**2 != places:
        raise UserError(f"{key} has {places} places, which is not a square number of patches.")
    return side
