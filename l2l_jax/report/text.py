"""What a report says in words: first of all, whether the images are forgotten."""

from collections.abc import Mapping, Sequence
from typing import Any

MEANINGS = {
    "forgotten for good": "no attack brought it back",
    "hidden, not forgotten": "an attack brings it back",
    "not forgotten": "no attack is needed",
    "undecided": "these measurements do not settle it",
}
"""The verdicts, and what they mean."""


def headline(audit: Mapping[str, Any]) -> str:
    """The verdict in a line."""
    finding, sure = audit["verdict"]["finding"], audit["verdict"]["sure"]
    doubt = "" if sure or finding == "undecided" else " (not sure)"
    return f"{finding[0].upper()}{finding[1:]}{doubt}: {MEANINGS[finding]}."


def sentences(report: Mapping[str, Any]) -> list[str]:
    """The verdict of an audited run: what was to be forgotten, what survives, at what cost, how sure."""
    audit, data = report["audit"], report["config"]["data"]
    return [
        f"To be forgotten: {_listed(data['forget'])}; to be kept: {_listed(data['retain'])}.",
        headline(audit),
        *_surface(audit),
        *_attack(audit),
        *_unresolved(audit),
        _cost(audit),
        *_sureness(audit),
        *_yardstick(audit),
    ]


def _listed(classes: Sequence[Any]) -> str:
    shown = ", ".join(map(str, classes[:10]))
    return shown if len(classes) <= 10 else f"{shown} and {len(classes) - 10} more classes"


def _surface(audit: Mapping[str, Any]) -> list[str]:
    """What the model shows when nobody attacks it."""
    first = audit["results"][0]
    said = [f"Before any attack, {_known(first)}{_depths(first)}."]
    resolved = [d["value"] for d in first["depth"].values() if d["resolved"]]
    if resolved and max(resolved) > 1:
        said.append("A depth above 1 is more than never having seen: it shows that something was removed.")
    return said


def _attack(audit: Mapping[str, Any]) -> list[str]:
    weakest = audit["verdict"]["weakest_attack"]
    result = next((r for r in audit["results"] if r["name"] == weakest), None)
    if result is None:
        return [] if weakest is None else [f"The attack that leaves the least: {audit['verdict']['title']}."]
    return [f"The attack that leaves the least: {result['title']}; then {_known(result)}{_depths(result)}."]


def _unresolved(audit: Mapping[str, Any]) -> list[str]:
    titles = audit["verdict"]["unresolved_titles"]
    return [f"Too few test images to tell a depth: {', '.join(titles)}."] if titles else []


def _known(result: Mapping[str, Any]) -> str:
    """What the models know of the forget images."""
    name = "accuracy" if "accuracy" in result["figures"]["unlearned"]["forget"] else "mse"
    values = {model: sets["forget"][name][0] for model, sets in result["figures"].items()}
    if name == "accuracy":
        share = f"{100 * values.pop('unlearned'):.0f} of 100"
        said = f"the class of {share} forget images is read from what it restores"
        others = {model: f"{100 * value:.0f}" for model, value in values.items()}
    else:
        said = f"the hole error of forget images is {values.pop('unlearned'):.4f}"
        others = {model: f"{value:.4f}" for model, value in values.items()}
    return f"{said} ({', '.join(f'{model} model: {value}' for model, value in others.items())})"


def _depths(result: Mapping[str, Any]) -> str:
    known = {"accuracy": "by accuracy", "error": "by log error", "auc": "by AUC"}
    parts = [
        f"{d['value']:.2f} {known[measure]} [{d['low']:.2f}, {d['high']:.2f}]"
        for measure, d in result["depth"].items()
        if d["resolved"]
    ]
    if not result["depth"]:
        return ""
    return f"; depth {' and '.join(parts)}" if parts else "; the test images are too few to tell a depth"


def _cost(audit: Mapping[str, Any]) -> str:
    ratio, low, high = audit["cost"]["mse_ratio"]
    said = f"On retain images the hole error is {ratio:.2f} times the original's [{low:.2f}, {high:.2f}]"
    if "accuracy_drop" in audit["cost"]:
        drop, low, high = audit["cost"]["accuracy_drop"]
        said += f", and the accuracy {drop:.3f} lower [{low:.3f}, {high:.3f}]"
    return f"{said}."


def _sureness(audit: Mapping[str, Any]) -> list[str]:
    if audit["verdict"]["finding"] == "undecided":
        return []
    over = "over test images"
    if audit["yardstick"] is not None and audit["yardstick"]["seeds"] is not None:
        over += " and seeds of the retrained model"
    if audit["verdict"]["sure"]:
        return [f"The 95 % interval {over} bears the verdict out."]
    return [f"The 95 % interval {over} reaches across the threshold: the verdict is not sure."]


def _yardstick(audit: Mapping[str, Any]) -> list[str]:
    yardstick = audit["yardstick"]
    if yardstick is None:
        return [
            "There is no model that never saw the forget images to compare with, so that no depth is known."
        ]
    said = []
    if yardstick["seeds"] is None:
        said.append(
            "What another seed of the retrained model would change is not known, and is not in any interval."
        )
    if yardstick["fair"]:
        return said
    return [
        *said,
        f"The model that never saw them restores retain images {yardstick['ratio'][0]:.2f} times worse than "
        "the original (fair is up to 1.1): depths measured with it are not to be trusted.",
    ]
