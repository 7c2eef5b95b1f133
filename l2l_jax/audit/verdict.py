"""The verdict of an audit: forgotten, hidden, not forgotten or undecided, with error rates of 5%."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from l2l_jax.audit.comparison import ALPHA, Comparison

Finding = Literal["forgotten", "hidden", "not forgotten", "undecided"]

REQUIREMENTS: dict[str, tuple[Finding, ...]] = {
    "forgotten": ("forgotten",),
    "hidden": ("forgotten", "hidden"),
}
"""Verdicts that satisfy each value of `--require`."""


class Verdict(NamedTuple):
    """Outcome of an audit."""

    finding: Finding  # the verdict
    # Name of the attack that decides the verdict or leaves it open; None for the model without attack
    attack: str | None = None
    comparison: Comparison | None = None  # the deciding comparison; None without a retrained model
    # Attacks after which the model knows significantly more than the retrained model
    violated: tuple[str, ...] = ()
    unsettled: tuple[str, ...] = ()  # attacks whose comparisons are inconclusive

    def describe(self) -> dict[str, Any]:
        """Return all fields, and the numbers of images and retrained models needed, as JSON values."""
        comparison = self.comparison
        undecided = comparison if self.finding == "undecided" else None
        needed = undecided.images_needed() if undecided else math.inf
        return {
            "finding": self.finding,
            "weakest_attack": self.attack,
            "comparison": None if comparison is None else comparison.describe(),
            "violated_attacks": list(self.violated),
            "unsettled_attacks": list(self.unsettled),
            "images_needed": math.ceil(needed) if needed < 1e7 else None,
            "retrained_needed": undecided.retrained_needed() if undecided else None,
        }


def decide(
    unattacked: Sequence[Comparison],
    attacks: Mapping[str, Sequence[Comparison]],
    marks: Mapping[str | None, Comparison] = MappingProxyType({}),
) -> Verdict:
    """Return the verdict on an unlearned model.

    "Forgotten" requires every comparison to hold (an intersection–union test). "Not forgotten" requires a
    significant violation without attack, and "hidden" one after an attack (Holm's correction over attacks and
    measures); "hidden" also requires all comparisons without attack to hold. Each verdict is wrong in at most
    5% of cases.

    Args:
      unattacked: Comparisons of the unattacked model; empty without a retrained model.
      attacks: Comparisons after each attack, one for each measure.
      marks: Comparisons of canaries by attack (None: unattacked). They can be violated but are not required
        to hold: a reconstructed mark proves memory, but there are too few marks to prove its absence.
    """
    if not unattacked:
        return Verdict("undecided")
    before: list[tuple[str | None, Comparison]] = [(None, c) for c in unattacked]
    after = [(name, c) for name, comparisons in attacks.items() for c in comparisons]
    violations = _violations([*after, *((name, c) for name, c in marks.items() if name)])
    violated = tuple(dict.fromkeys(name for name, _ in violations))
    open_attacks = (name for name, tests in attacks.items() if not all(c.holds for c in tests))
    unsettled = tuple(name for name in open_attacks if name not in violated)
    if retained := _violations([*before, *((name, c) for name, c in marks.items() if not name)]):
        return Verdict("not forgotten", *max(retained, key=_distance), violated, unsettled)
    if unsure := [entry for entry in before if not entry[1].holds]:
        return Verdict("undecided", *max(unsure, key=_distance), violated, unsettled)
    if violations:
        return Verdict("hidden", *max(violations, key=_distance), violated, unsettled)
    nearest = max([*before, *after], key=lambda entry: entry[1].p_holds)
    return Verdict("undecided" if unsettled else "forgotten", *nearest, (), unsettled)


def differ(comparisons: Sequence[Comparison]) -> bool:
    """Return whether a model knows significantly more than the retrained model by any measure."""
    return bool(_violations([(None, c) for c in comparisons]))


def _violations(entries: Sequence[tuple[Any, Comparison]]) -> list[tuple[Any, Comparison]]:
    """Return the named comparisons that are significantly violated, after Holm (1979)."""
    ordered = sorted(entries, key=lambda entry: entry[1].p_violated)
    for rank, (_, comparison) in enumerate(ordered):
        if comparison.p_violated > ALPHA / (len(ordered) - rank):
            return ordered[:rank]
    return ordered


def _distance(entry: tuple[Any, Comparison]) -> float:
    """Return the excess beyond the margin in units of the margin, which is comparable across measures."""
    comparison = entry[1]
    return (comparison.excess - comparison.margin) / comparison.margin
