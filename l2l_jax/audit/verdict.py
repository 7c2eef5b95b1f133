"""From depths under attack to a verdict, by a rule that knows nothing of how a model was unlearned."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from l2l_jax.audit.depth import Depth

Finding = Literal["forgotten for good", "hidden, not forgotten", "not forgotten", "undecided"]

REQUIREMENTS: dict[str, tuple[Finding, ...]] = {
    "forgotten": ("forgotten for good",),
    "hidden": ("forgotten for good", "hidden, not forgotten"),
}
"""The verdicts that satisfy `--require`."""

DEEP = 0.8
"""Depth that every attack has to leave for "forgotten for good": four fifths of the way from the original to
a model that never saw the images."""

SHALLOW = 0.5
"""Depth below which a model that nobody attacked is nearer to the original than to one that never saw: "not
forgotten"."""


class Verdict(NamedTuple):
    """What an audit comes to.

    Attributes:
      finding: in words.
      weakest: name of the attack that decided it, or None.
      depth: the depth that it left, or None.
      sure: whether the 95 % interval of that depth lies on one side of the threshold.
      unresolved: names of the attacks after which the test images are too few to tell a depth.
    """

    finding: Finding
    weakest: str | None
    depth: Depth | None
    sure: bool
    unresolved: tuple[str, ...] = ()

    def describe(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "finding": self.finding,
            "weakest_attack": self.weakest,
            "depth": None if self.depth is None else self.depth.describe(),
            "sure": self.sure,
            "unresolved_attacks": list(self.unresolved),
        }


def decide(untouched: Sequence[Depth], attacks: Mapping[str, Sequence[Depth]]) -> Verdict:
    """The verdict on an unlearned model.

    The rule, on depths that the test images can resolve, an attack's depth being the least by any measure:
    below `SHALLOW` without any attack: "not forgotten"; at least `DEEP` after every attack and without one:
    "forgotten for good"; otherwise "hidden, not forgotten". Where nothing can be resolved, "undecided".

    Args:
      untouched: depths of the model that nobody attacked, by different measures.
      attacks: depths after each attack.
    """
    surface = _least(untouched)
    resolved = {name: least for name, depths in attacks.items() if (least := _least(depths)) is not None}
    return _found(surface, resolved)._replace(
        unresolved=tuple(name for name in attacks if name not in resolved)
    )


def _found(surface: Depth | None, resolved: Mapping[str, Depth]) -> Verdict:
    if surface is None:
        return Verdict("undecided", None, None, False)
    if surface.value < SHALLOW:
        return Verdict("not forgotten", None, surface, surface.high < SHALLOW)
    if not resolved:
        return Verdict("undecided", None, surface, False)
    weakest = min(resolved, key=lambda name: resolved[name].value)
    depth = resolved[weakest]
    if min(depth.value, surface.value) >= DEEP:
        return Verdict("forgotten for good", weakest, depth, min(depth.low, surface.low) >= DEEP)
    if surface.value < depth.value:
        return Verdict("hidden, not forgotten", None, surface, surface.high < DEEP)
    return Verdict("hidden, not forgotten", weakest, depth, depth.high < DEEP and surface.low >= SHALLOW)


def _least(depths: Sequence[Depth]) -> Depth | None:
    return min((depth for depth in depths if depth.resolved), key=lambda depth: depth.value, default=None)
