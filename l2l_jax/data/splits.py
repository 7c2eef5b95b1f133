"""Which classes are forgotten and which are retained."""

import difflib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from l2l_jax.data.sources import Source, Subset
from l2l_jax.errors import UserError


class Split(NamedTuple):
    """The two sets of an unlearning task."""

    retain: Source
    forget: Source


def split_by_class(
    source: Source, retain: Sequence[str | int], forget: Sequence[str | int]
) -> Split:
    """The records of the retain and of the forget classes.

    Args:
      source: any source; no image of it is decoded.
      retain, forget: class names, or class ids.

    Raises:
      UserError: an unknown class (the nearest names are given), a class in both sets, or an empty set.
    """
    ids = {
        "retain": class_ids(source.class_names, retain, "config.data.retain"),
        "forget": class_ids(source.class_names, forget, "config.data.forget"),
    }
    both = sorted(set(ids["retain"]) & set(ids["forget"]))
    if both:
        names = ", ".join(source.class_names[i] for i in both)
        raise UserError(
            f"Classes both in config.data.retain and in config.data.forget: {names}. "
            "Take each out of one of the two."
        )
    return Split(**{name: _select(source, chosen, name) for name, chosen in ids.items()})


def class_ids(class_names: Sequence[str], wanted: Sequence[str | int], field: str) -> list[int]:
    """Class ids of names or ids.

    Raises:
      UserError: an unknown class; `field` says where it was written.
    """
    ids = []
    for name in wanted:
        if isinstance(name, str) and name in class_names:
            ids.append(list(class_names).index(name))
        elif isinstance(name, int) and 0 <= name < len(class_names):
            ids.append(name)
        else:
            near = difflib.get_close_matches(name, class_names) if isinstance(name, str) else []
            hint = f"nearest: {', '.join(near)}" if near else _examples(class_names)
            raise UserError(f"{field} names the class {name!r}, which the source lacks; {hint}.")
    return ids


def _examples(class_names: Sequence[str]) -> str:
    shown = ", ".join(class_names[:10])
    return f"its classes: {shown}" + (", …" if len(class_names) > 10 else "")


def _select(source: Source, classes: list[int], name: str) -> Subset:
    indices = np.flatnonzero(np.isin(source.labels, classes))
    if not len(indices):
        raise UserError(f"The {name} set is empty: config.data.{name} selects no image.")
    return Subset(source, indices)
