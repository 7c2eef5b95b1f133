"""From measurements of attacked models to comparisons, metrics, depths and a verdict; all JSON-able."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from l2l_jax.audit.attacks.base import Findings, Measured, Points
from l2l_jax.audit.attacks.membership import FALSE_POSITIVES, relative_error, true_positives
from l2l_jax.audit.canaries import CANARIES, split_sets
from l2l_jax.audit.comparison import (
    MARGINS,
    Comparison,
    Measure,
    Sample,
    SeedSpread,
    accuracy_interval,
    auc,
    compare,
    deviation,
    knowledge,
)
from l2l_jax.audit.klom import intervals
from l2l_jax.audit.verdict import Verdict, decide, differ
from l2l_jax.evals.intervals import bootstrap, mean_interval

UNATTACKED = "no_attack"  # name of what is measured without any attack
# Findings of "original", "unlearned" and "retrained" models; there may be none or several of the last
Models = Mapping[str, Sequence[Findings]]

KNOWLEDGE: Mapping[Measure, Callable[..., np.ndarray]] = {
    "error": lambda mse: -np.log(np.maximum(mse.mean(-1), 1e-12)),
    "accuracy": lambda right: right.mean(-1),
    "auc": auc,
}
"""The quantity `a` of `depth` by measure, from arrays whose last axis is that of images."""


class Line(NamedTuple):
    """A line of the report: a variant of an attack; a curve's points are steps from the unattacked model."""

    name: str
    title: str
    is_curve: bool = False


class Best(NamedTuple):
    """The point that an attacker keeps ("0": the unattacked model), and the forget test images there."""

    point: str
    sample: Sample


def conclude(models: Models, lines: Sequence[Line], standard: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the audit of an unlearned model.

    Args:
      models: Findings by role. Without a retrained model the unlearned one is compared with the original.
      lines: The variants that were run, the unattacked model first.
      standard: Facts about the retrained models; "seeds" holds the spread over training seeds, if known.

    Returns:
      "verdict"; "comparisons" of every line and measure with the reference; "results" by line; "cost" on
      retain images; "canaries", "membership", "layers" of the linear probe, "curves" over steps.
    """
    reference = "retrained" if models["retrained"] else "original"
    spread = (standard or {}).get("seeds")
    canaries, marks = _canaries(models, lines)
    own, others = models["unlearned"][0], models[reference]
    comparisons = {line.name: _comparisons(own, others, line, spread) for line in lines}
    attacks = {name: found for name, found in comparisons.items() if name != UNATTACKED}
    verdict, differs = _without_standard(comparisons[UNATTACKED]), None
    if reference == "retrained":
        verdict = decide(comparisons[UNATTACKED], attacks, marks)
        differs = differ(_comparisons(models["original"][0], models["retrained"], lines[0], spread))
    titles = {line.name: line.title for line in lines}
    first = {role: found[0] for role, found in models.items() if found}
    curves = {
        line.name: {role: _curve(found, line) for role, found in first.items()}
        for line in lines
        if line.is_curve and all(point.isdigit() for point in own[line.name])
    }
    return {
        "verdict": {
            **verdict.describe(),
            "title": None if verdict.attack is None else titles[verdict.attack],
            "attacks": len(attacks),
            "little_to_forget": differs is False,
        },
        "reference": reference,
        "yardstick": standard,
        "comparisons": [
            {
                "name": name,
                "title": titles[name],
                **comparison.describe(),
                "outcome": _outcome(comparison, name in verdict.violated, reference),
            }
            for name, found in comparisons.items()
            for comparison in found
        ],
        "cost": _cost(first["original"], own),
        "results": [
            _result(models, line) for line in lines if "error" in samples(list(own[line.name].values())[-1])
        ],
        "canaries": canaries,
        "membership": {role: _membership(found, first) for role, found in first.items()},
        "residual_knowledge": _residual_knowledge(first),
        "layers": {role: _layers(found) for role, found in first.items() if "linear_probe" in found},
        "curves": curves,
        "shown_attack": _strongest({name: comparisons[name] for name in curves}),
    }


def seed_spread(models: Sequence[Findings], lines: Sequence[Line]) -> dict[str, dict[Measure, float]]:
    """Return how much models that differ by their seed alone know differently, by line and measure."""
    spread: dict[str, dict[Measure, float]] = {}
    for line in lines:
        known = [best_points(findings, line) for findings in models]
        spread[line.name] = {
            measure: round(deviation(measure, [k[measure].sample for k in known]), 4) for measure in known[0]
        }
    return spread


def best_points(findings: Findings, line: Line) -> dict[Measure, Best]:
    """Return the point that tells most, by measure: chosen on validation images, quoted on test images."""
    points: Points = findings[line.name]
    if line.is_curve:
        points = {"0": findings[UNATTACKED]["0"], **points}
    last = list(points)[-1]
    best = {}
    for measure in samples(points[last]):
        known = {
            point: knowledge(measure, on_validation[measure])
            for point, measured in points.items()
            if measure in (on_validation := samples(measured, "validation"))
        }
        point = max(known, key=known.__getitem__) if known else last
        best[measure] = Best(point, samples(points[point])[measure])
    return best


def samples(measured: Measured, name: str = "forget") -> dict[Measure, Sample]:
    """Return what was measured on a set, by measure; accuracy needs images of two classes."""
    if "members" in measured:
        shadow = "shadow_" if name == "validation" else ""
        if f"{shadow}members" not in measured:
            return {}
        members, others = (measured[f"{shadow}{kind}"] for kind in ("members", "others"))
        key = "score" if "score" in members else "mse"
        return {"auc": (members[key], others[key])}
    values = measured.get(name, {})
    found: dict[Measure, Sample] = {}
    if "mse" in values:
        found["error"] = (values["mse"],)
    if "right" in values and len(np.unique(values["label"])) > 1:
        found["accuracy"] = (values["right"], values["label"])
    return found


def depth(measure: Measure, *models: Sample) -> dict[str, Any]:
    """Return the depth of forgetting: 0 as the original, 1 as if never seen, above 1 further away than that.

        depth = (a_original − a_unlearned) / (a_original − a_retrained)

    of a quantity `a` that is greater the more a model knows. It describes; the verdict does not use it.

    Args:
      measure: What the samples are, see `comparison.Sample`; class ids are not used.
      models: Measurements of the original, the unlearned and the retrained model on the same images, which
        are resampled together.

    Returns:
      JSON-able: "value" and its 95% interval over images, "low" and "high"; "resolved": whether original and
      retrained model clearly differ, by more than the measure's margin.
    """
    used = 2 if measure == "auc" else 1
    arrays = [[np.asarray(values, np.float64) for values in sample[:used]] for sample in models]

    def known(chosen):
        resampled = ([x[i] for x, i in zip(sample, chosen, strict=True)] for sample in arrays)
        return (KNOWLEDGE[measure](*values) for values in resampled)

    def gap(*chosen):
        before, _, never = known(chosen)
        return before - never

    def share(*chosen):
        before, after, never = known(chosen)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(before > never, (before - after) / (before - never), np.nan)

    counts = [len(values) for values in arrays[0]]
    value, low, high = plain(bootstrap(share, *counts))
    resolved = bootstrap(gap, *counts).low > MARGINS[measure]
    return {"value": value, "low": low, "high": high, "resolved": resolved}


def plain(values: Iterable[float]) -> list[float | None]:
    """Return JSON-able numbers: None for those that are not finite."""
    return [float(x) if math.isfinite(x) else None for x in values]


def _comparisons(
    model: Findings, references: Sequence[Findings], line: Line, spread: Mapping[str, Any] | None
) -> list[Comparison]:
    """Compare a model with others after an attack; `spread`: what a card says of other training seeds."""
    others = [best_points(findings, line) for findings in references]
    known, comparisons = (spread or {}).get("spread", {}).get(line.name, {}), []
    for measure, best in best_points(model, line).items():
        seeds = SeedSpread(known[measure], spread["count"]) if spread and measure in known else None
        comparisons.append(compare(measure, best.sample, [other[measure].sample for other in others], seeds))
    return comparisons


def _without_standard(unattacked: Sequence[Comparison]) -> Verdict:
    """Return "not forgotten" if the model knows as much as the original, "undecided" otherwise."""
    if all(comparison.low > -comparison.margin for comparison in unattacked):
        return Verdict("not forgotten", None, unattacked[0])
    return Verdict("undecided")


def _outcome(comparison: Comparison, violated: bool, reference: str) -> str:
    """Return what the unlearned model is shown to know: "no more", "more", "less" or "as much"."""
    if reference == "original":
        no_less = comparison.low > -comparison.margin
        return "as much" if no_less else "less" if comparison.high < -comparison.margin else "open"
    return "no more" if comparison.holds else "more" if violated else "open"


def _result(models: Models, line: Line) -> dict[str, Any]:
    """Return metrics at the best points of each model, depths, and distances of their errors."""
    from scipy.stats import ks_2samp  # SciPy takes long to load

    pooled: dict[str, dict[Measure, Sample]] = {}  # the mean over models of one role
    for role, findings in models.items():
        best = [best_points(found, line) for found in findings]
        for measure in best[0] if best else ():
            arrays = zip(*(known[measure].sample for known in best), strict=True)
            pooled.setdefault(role, {})[measure] = tuple(np.mean(x, axis=0) for x in arrays)
    figures = {role: {"forget": _metrics(known)} for role, known in pooled.items()}
    if line.name == UNATTACKED:
        for role in pooled:
            figures[role]["retain"] = _metrics(samples(models[role][0][UNATTACKED]["0"], "retain"))
    depths, distance = {}, None
    if "retrained" in pooled:
        roles = ("original", "unlearned", "retrained")
        depths = {m: depth(m, *(pooled[role][m] for role in roles)) for m in pooled["unlearned"]}
        test = ks_2samp(*(pooled[role]["error"][0] for role in roles[1:]))
        distance = {"d": float(test.statistic), "p": float(test.pvalue)}
    return {
        "name": line.name,
        "title": line.title,
        "figures": figures,
        "depth": depths,
        "distance": distance,
        "klom": _klom(models, line),
    }


def _klom(models: Models, line: Line) -> dict[str, dict[str, list[float | None]]]:
    """Return the divergence from two or more retrained models by set and role, see `klom`; else nothing."""
    if len(models["retrained"]) < 2:
        return {}
    sets = {
        "forget": lambda findings: best_points(findings, line)["error"].sample[0],
        "retain": lambda findings: findings[UNATTACKED]["0"]["retain"]["mse"],
    }
    if line.name != UNATTACKED:
        del sets["retain"]
    return {
        name: {
            role: plain(interval)
            for role, interval in intervals({r: [*map(errors, found)] for r, found in models.items()}).items()
        }
        for name, errors in sets.items()
    }


def _metrics(known: Mapping[Measure, Sample]) -> dict[str, list[float | None]]:
    """Return value and 95% interval of "mse" and "accuracy" (balanced over classes)."""
    found = {}
    if "error" in known:
        found["mse"] = plain(mean_interval(known["error"][0]))
    if "accuracy" in known:
        found["accuracy"] = plain(accuracy_interval(*known["accuracy"]))
    return found


def _cost(original: Findings, unlearned: Findings) -> dict[str, list[float | None]]:
    """Return the ratio of masked MSEs on retain test images, and how much the accuracy has dropped."""
    before, after = (findings[UNATTACKED]["0"]["retain"] for findings in (original, unlearned))

    def ratio(chosen):
        return after["mse"][chosen].mean(-1) / before["mse"][chosen].mean(-1)

    cost = {"mse_ratio": plain(bootstrap(ratio, len(before["mse"])))}
    if "right" in before:
        cost["accuracy_drop"] = plain(mean_interval(before["right"].astype(float) - after["right"]))
    return cost


def _strongest(comparisons: Mapping[str, Sequence[Comparison]]) -> str | None:
    """Return the attack that recovers most relative to the margins; None without any."""
    strength = {name: max((c.excess - c.margin) / c.margin for c in cs) for name, cs in comparisons.items()}
    return max(strength, key=strength.__getitem__, default=None)


def _canaries(models: Models, lines: Sequence[Line]) -> tuple[list[dict], dict[str | None, Comparison]]:
    """Return how well models restore marks by line, and comparisons with retrained models by attack."""
    rows, comparisons = [], dict[str | None, Comparison]()
    for line in lines:
        measured = {role: [_at_least_error(x, line) for x in found] for role, found in models.items()}
        if CANARIES not in measured["unlearned"][0]:
            continue
        sets = {role: [split_sets(x[CANARIES]["score"]) for x in found] for role, found in measured.items()}
        first = {role: found[0][CANARIES]["found"] for role, found in measured.items() if found}
        shown = {
            role: {
                name: {**_scored(*pair), "found": float(split_sets(first[role])[name][0].sum())}
                for name, pair in sets[role][0].items()
            }
            for role in first
        }
        count = len(first["unlearned"]) // 4
        rows.append({"name": line.name, "title": line.title, "count": count, "models": shown})
        if sets["retrained"]:
            name = None if line.name == UNATTACKED else line.name
            own, *others = (x["forget"] for x in (sets["unlearned"][0], *sets["retrained"]))
            comparisons[name] = compare("marks", own, others)
    return rows, comparisons


def _at_least_error(findings: Findings, line: Line) -> Measured:
    """Return what was measured at the point of the least error; empty if no error was measured."""
    best = best_points(findings, line).get("error")
    return {} if best is None else {"0": findings[UNATTACKED]["0"], **findings[line.name]}[best.point]


def _membership(findings: Findings, models: Mapping[str, Findings]) -> dict[str, Any]:
    """Return AUC and true positive rates by score: the error, relative to the retrained model, and others."""
    scores: dict[str, Sequence[np.ndarray]] = {}
    if "membership" in findings:
        own = scores["error"] = samples(findings["membership"]["0"])["auc"]
        reference = models.get("retrained", findings)
        if reference is not findings:
            others = samples(reference["membership"]["0"])["auc"]
            scores["relative_error"] = [relative_error(*pair) for pair in zip(own, others, strict=True)]
    for decider, measured in findings.get("membership_repeated", {}).items():
        scores[f"repeated_{decider}"] = samples(measured)["auc"]
    return {name: _scored(*pair) for name, pair in scores.items()}


def _scored(members: np.ndarray, others: np.ndarray) -> dict[str, Any]:
    interval = bootstrap(lambda i, j: auc(members[i], others[j]), len(members), len(others))
    rates = {name: true_positives(members, others, rate) for name, rate in FALSE_POSITIVES.items()}
    return {"auc": plain(interval), "true_positives": rates}


def _residual_knowledge(models: Mapping[str, Findings]) -> dict[str, Any]:
    """Return how often changed images are recognized, in multiples of the retrained model, by role.

    "ratio" is that of the means, with its interval over images, None where the retrained model recognizes
    none; "above" is the share of images with a ratio above 1.
    """
    name = "residual_knowledge"
    if name not in models.get("retrained", {}):
        return {}
    never = models["retrained"][name]["0"]["forget"]["right"]
    found = {}
    for role in ("original", "unlearned"):
        own = models[role][name]["0"]["forget"]["right"]

        def ratio(chosen, own=own):
            return own[chosen].mean(-1) / np.maximum(never[chosen].mean(-1), 1e-12)

        interval = plain(bootstrap(ratio, len(own))) if never.any() else [None] * 3
        found[role] = {"ratio": interval, "above": float(np.mean(own > never))}
    return found


def _layers(findings: Findings) -> dict[str, list[float | None]]:
    measured = {layer: sets["forget"] for layer, sets in findings["linear_probe"].items()}
    return {layer: plain(accuracy_interval(m["right"], m["label"])) for layer, m in measured.items()}


def _curve(findings: Findings, line: Line) -> list[dict[str, Any]]:
    points = {"0": findings[UNATTACKED]["0"], **findings[line.name]}
    return [{"step": int(step), **_metrics(samples(measured))} for step, measured in points.items()]
