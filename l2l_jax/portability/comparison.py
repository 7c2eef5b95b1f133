"""Comparison of two records, within the differences that are allowed."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from tabulate import tabulate

TOLERANCES: dict[str, tuple[float, float | None]] = {
    # quantity: float32 at full precision on both sides, otherwise
    "loss": (0.05, None),
    "retain": (0.05, None),
    "forget": (1e-3, 0.1),
    "grad_norm": (0.05, None),
    "moments": (0.1, None),
    "parameters": (1e-3, 2e-3),
    "features": (1e-4, 0.2),
    "tokens": (0.002, 0.1),
}
"""Greatest difference of any number of a quantity, as a share of the quantity's greatest number; of tokens:
the share that may be others. The second column is for records of which one was rounded: computed in
bfloat16, or with products of default precision on an accelerator. `retain` is the difference of nearly equal
features, and the loss and its gradient follow it: rounded, they say nothing (None)."""


class Row(NamedTuple):
    """A quantity of a case: how much it differs and how much it may."""

    case: str
    quantity: str
    difference: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Return whether it differs by no more than it may; NaN does not."""
        return self.difference <= self.tolerance


def compare(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> list[Row]:
    """Return the rows of two records, as `l2l_jax.portability.__main__` writes them."""
    rounded = any(
        facts["dtype"] != "float32" or (facts["precision"] != "highest" and facts["platform"] != "cpu")
        for facts in (recorded["facts"], here["facts"])
    )
    rows = []
    for case, figures in recorded["cases"].items():
        for quantity, limits in TOLERANCES.items():
            allowed = limits[rounded]
            if quantity in figures and allowed is not None:
                found = _difference(quantity, figures[quantity], here["cases"][case].get(quantity, []))
                rows.append(Row(case, quantity, found, allowed))
    return rows


def _difference(quantity: str, recorded: list[float], here: list[float]) -> float:
    """Return how much a quantity differs; infinity where there are more or fewer numbers."""
    a, b = np.asarray(recorded, np.float64), np.asarray(here, np.float64)
    if a.shape != b.shape:
        return float("inf")
    if quantity == "tokens":
        return float(np.mean(a != b))
    return float(np.abs(a - b).max() / np.abs(a).max())


def table(rows: list[Row]) -> str:
    """Format a table of all rows; those that do not hold are marked."""
    lines = [[*row, "" if row.holds else "DIFFERS"] for row in rows]
    header = ["case", "quantity", "difference", "allowed", ""]
    return tabulate(lines, header, tablefmt="github", floatfmt=".1e")
