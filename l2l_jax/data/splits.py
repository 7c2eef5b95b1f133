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
    source: Source,
    retain: Sequence[str | int],
    forget: Sequence[str | int],
    proxy: Sequence[str | int] = (),
) -> Split:
    """The records of the retain and of the forget classes.

    Args:
      source: any source; no image of it is decoded.
      retain, forget: class names, or class ids.
      proxy: classes that stand in for the retain classes, of which `source` then needs no record:
        their records are `Split.retain`. None: nothing stands in.

    Raises:
      UserError: an unknown class (the nearest names are given), a class to forget among the
        others, or an empty set.
    """
    given = {"retain": retain, "proxy": proxy, "forget": forget}
    ids = {
        name: class_ids(source.class_names, classes, f"config.data.{name}")
        for name, classes in given.items()
    }
    for name in ("retain", "proxy"):
        both = sorted(set(ids[name]) & set(ids["forget"]))
        if both:
            names = ", ".join(source.class_names[i] for i in both)
            raise UserError(
                f"Classes both in config.data.{name} and in config.data.forget: {names}. "
                "Take each out of one of the two."
            )
    kept = "proxy" if proxy else "retain"
    return Split(_select(source, ids[kept], kept), _select(source, ids["forget"], "forget"))


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
