"""The verdict of an audit: forgotten, hidden, not forgotten or undecided, with error rates of 5 %."""

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
"""The verdicts that satisfy `--require`."""


class Verdict(NamedTuple):
    """Outcome of an audit."""

    finding: Finding  # the verdict
    # Name of the attack that decides or leaves it open; None if that is the model without attack
    attack: str | None = None
    comparison: Comparison | None = None  # its deciding comparison; None without a retrained model
    # Attacks after which the model significantly knows more than the retrained one
    violated: tuple[str, ...] = ()
    unsettled: tuple[str, ...] = ()  # attacks after which neither that nor the opposite is shown

    def describe(self) -> dict[str, Any]:
        """Return all fields and the numbers of images and retrained models that would decide, JSON-able."""
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

    "Forgotten" needs every comparison to hold (an intersection–union test). "Not forgotten" needs one without
    attack, "hidden" one after an attack, to be significantly violated (Holm's correction over attacks and
    measures), and for "hidden" all without attack to hold. Each is wrong in at most 5 % of cases.

    Args:
      unattacked: Comparisons of the model that nobody attacked; empty without a retrained model.
      attacks: Comparisons after each attack, one for each measure.
      marks: Comparisons of canaries, by attack (None: unattacked). They can be violated and need not hold: a
        mark that is restored shows memory, but marks are too few to show that there is none.
    """
    if not unattacked:
        return Verdict("undecided")
    before: list[tuple[str | None, Comparison]] = [(None, c) for c in unattacked]
    after = [(name, c) for name, comparisons in attacks.items() for c in comparisons]
    violations = _violations([*after, *((name, c) for name, c in marks.items() if name)])
    violated = tuple(dict.fromkeys(name for name, _ in violations))
    open_attacks = (name for name, found in attacks.items() if not all(c.holds for c in found))
    unsettled = tuple(name for name in open_attacks if name not in violated)
    if shown := _violations([*before, *((name, c) for name, c in marks.items() if not name)]):
        return Verdict("not forgotten", *max(shown, key=_distance), violated, unsettled)
    if unsure := [entry for entry in before if not entry[1].holds]:
        return Verdict("undecided", *max(unsure, key=_distance), violated, unsettled)
    if violations:
        return Verdict("hidden", *max(violations, key=_distance), violated, unsettled)
    nearest = max([*before, *after], key=lambda entry: entry[1].p_holds)
    return Verdict("undecided" if unsettled else "forgotten", *nearest, (), unsettled)


def differ(comparisons: Sequence[Comparison]) -> bool:
    """Return whether a model significantly knows more than the retrained one by any measure."""
    return bool(_violations([(None, c) for c in comparisons]))


def _violations(found: Sequence[tuple[Any, Comparison]]) -> list[tuple[Any, Comparison]]:
    """Return the named comparisons that are significantly violated, by Holm (1979)."""
    ordered = sorted(found, key=lambda entry: entry[1].p_violated)
    for rank, (_, comparison) in enumerate(ordered):
        if comparison.p_violated > ALPHA / (len(ordered) - rank):
            return ordered[:rank]
    return ordered


def _distance(entry: tuple[Any, Comparison]) -> float:
    """Return the excess beyond the margin in margins, so that measures can be compared."""
    comparison = entry[1]
    return (comparison.excess - comparison.margin) / comparison.margin
