"""Comparisons, metrics, depths and a verdict from measurements of attacked models, as JSON values."""

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

UNATTACKED = "no_attack"  # name of the measurements without any attack
# Findings of "original", "unlearned" and "retrained" models; there may be none or several retrained models
Models = Mapping[str, Sequence[Findings]]

KNOWLEDGE: Mapping[Measure, Callable[..., np.ndarray]] = {
    "error": lambda mse: -np.log(np.maximum(mse.mean(-1), 1e-12)),
    "accuracy": lambda right: right.mean(-1),
    "auc": auc,
}
"""Functions for the quantity `a` of `depth`, by measure; the last axis of their arrays is the image axis."""


class Line(NamedTuple):
    """A row of the report: a variant of an attack. Points of a curve are steps from the unattacked model."""

    name: str
    title: str
    is_curve: bool = False


class Best(NamedTuple):
    """The point an attacker would choose ("0": the unattacked model), and its forget test metrics."""

    point: str
    sample: Sample


def conclude(models: Models, lines: Sequence[Line], standard: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the audit report of an unlearned model.

    Args:
      models: Findings by role. Without a retrained model, the unlearned model is compared with the original.
      lines: Variants that were run, the unattacked model first.
      standard: Facts about the retrained models; "seeds" holds the spread over training seeds, if known.

    Returns:
      Dict with "verdict"; "comparisons" of every line and measure with the reference; "results" by line;
      "cost" on retain images; "canaries", "membership", "layers" of the linear probe, "curves" over steps.
    """
    reference = "retrained" if models["retrained"] else "original"
    spread = (standard or {}).get("seeds")
    canaries, marks = _canaries(models, lines)
    own, others = models["unlearned"][0], models[reference]
    comparisons = {line.name: _comparisons(own, others, line, spread) for line in lines}
    attacks = {name: tests for name, tests in comparisons.items() if name != UNATTACKED}
    verdict, differs = _without_standard(comparisons[UNATTACKED]), None
    if reference == "retrained":
        verdict = decide(comparisons[UNATTACKED], attacks, marks)
        differs = differ(_comparisons(models["original"][0], models["retrained"], lines[0], spread))
    titles = {line.name: line.title for line in lines}
    first = {role: findings[0] for role, findings in models.items() if findings}
    curves = {
        line.name: {role: _curve(findings, line) for role, findings in first.items()}
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
            for name, tests in comparisons.items()
            for comparison in tests
        ],
        "cost": _cost(first["original"], own),
        "results": [
            _result(models, line) for line in lines if "error" in samples(list(own[line.name].values())[-1])
        ],
        "canaries": canaries,
        "membership": {role: _membership(findings, first) for role, findings in first.items()},
        "residual_knowledge": _residual_knowledge(first),
        "layers": {role: _layers(own) for role, own in first.items() if "linear_probe" in own},
        "curves": curves,
        "shown_attack": _strongest({name: comparisons[name] for name in curves}),
    }


def seed_spread(models: Sequence[Findings], lines: Sequence[Line]) -> dict[str, dict[Measure, float]]:
    """Return the standard deviation of knowledge over models that differ only in their seed.

    The result is by line and measure.
    """
    spread: dict[str, dict[Measure, float]] = {}
    for line in lines:
        best = [best_points(findings, line) for findings in models]
        spread[line.name] = {
            measure: round(deviation(measure, [b[measure].sample for b in best]), 4) for measure in best[0]
        }
    return spread


def best_points(findings: Findings, line: Line) -> dict[Measure, Best]:
    """Return the point with the most knowledge by measure, chosen on validation images, with test metrics."""
    points: Points = findings[line.name]
    if line.is_curve:
        points = {"0": findings[UNATTACKED]["0"], **points}
    last = list(points)[-1]
    best = {}
    for measure in samples(points[last]):
        scores = {
            point: knowledge(measure, on_validation[measure])
            for point, measured in points.items()
            if measure in (on_validation := samples(measured, "validation"))
        }
        point = max(scores, key=scores.__getitem__) if scores else last
        best[measure] = Best(point, samples(points[point])[measure])
    return best


def samples(measured: Measured, name: str = "forget") -> dict[Measure, Sample]:
    """Return the samples of an image set by measure; accuracy needs images of at least two classes.

    The accuracy is the mean credit, except for attacks with their own classifier.
    """
    if "members" in measured:
        shadow = "shadow_" if name == "validation" else ""
        if f"{shadow}members" not in measured:
            return {}
        members, others = (measured[f"{shadow}{kind}"] for kind in ("members", "others"))
        key = "score" if "score" in members else "mse"
        return {"auc": (members[key], others[key])}
    values = measured.get(name, {})
    by_measure: dict[Measure, Sample] = {}
    if "error" in values:
        by_measure["error"] = (values["error"],)
    if "right" in values and len(np.unique(values["label"])) > 1:
        by_measure["accuracy"] = (values.get("credit", values["right"]), values["label"])
    return by_measure


def depth(measure: Measure, *models: Sample) -> dict[str, Any]:
    """Compute the depth of forgetting: 0 like the original, 1 like the retrained model, above 1 beyond it.

        depth = (a_original − a_unlearned) / (a_original − a_retrained)

    The quantity `a` increases with the knowledge of a model. Depth is descriptive; the verdict does not use
    it.

    Args:
      measure: Kind of the samples, see `comparison.Sample`; class IDs are not used.
      models: Measurements of the original, the unlearned and the retrained model on the same images, which
        are resampled jointly.

    Returns:
      JSON-serializable dict: "value" and its 95% interval over images, "low" and "high"; "resolved": whether
      the original and the retrained model differ by significantly more than the measure's margin.
    """
    used = 2 if measure == "auc" else 1
    arrays = [[np.asarray(values, np.float64) for values in sample[:used]] for sample in models]

    def quantities(chosen):
        resampled = ([x[i] for x, i in zip(sample, chosen, strict=True)] for sample in arrays)
        return (KNOWLEDGE[measure](*values) for values in resampled)

    def gap(*chosen):
        original, _, retrained = quantities(chosen)
        return original - retrained

    def share(*chosen):
        original, unlearned, retrained = quantities(chosen)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = (original - unlearned) / (original - retrained)
            return np.where(original > retrained, ratio, np.nan)

    counts = [len(values) for values in arrays[0]]
    value, low, high = plain(bootstrap(share, *counts))
    resolved = bootstrap(gap, *counts).low > MARGINS[measure]
    return {"value": value, "low": low, "high": high, "resolved": resolved}


def plain(values: Iterable[float]) -> list[float | None]:
    """Return JSON-serializable numbers, with None for values that are not finite."""
    return [float(x) if math.isfinite(x) else None for x in values]


def _comparisons(
    model: Findings, references: Sequence[Findings], line: Line, spread: Mapping[str, Any] | None
) -> list[Comparison]:
    """Compare a model with references after an attack.

    `spread` is the spread over training seeds stored in the metadata of a retrained model, if any.
    """
    others = [best_points(findings, line) for findings in references]
    deviations, comparisons = (spread or {}).get("spread", {}).get(line.name, {}), []
    for measure, best in best_points(model, line).items():
        seeds = SeedSpread(deviations[measure], spread["count"]) if spread and measure in deviations else None
        comparisons.append(compare(measure, best.sample, [other[measure].sample for other in others], seeds))
    return comparisons


def _without_standard(unattacked: Sequence[Comparison]) -> Verdict:
    """Return "not forgotten" if the model knows as much as the original, otherwise "undecided"."""
    if all(comparison.low > -comparison.margin for comparison in unattacked):
        return Verdict("not forgotten", None, unattacked[0])
    return Verdict("undecided")


def _outcome(comparison: Comparison, violated: bool, reference: str) -> str:
    """Return the outcome for the unlearned model: "no more", "more", "less", "as much" or "open"."""
    if reference == "original":
        no_less = comparison.low > -comparison.margin
        return "as much" if no_less else "less" if comparison.high < -comparison.margin else "open"
    return "no more" if comparison.holds else "more" if violated else "open"


def _result(models: Models, line: Line) -> dict[str, Any]:
    """Return metrics at the best points of each model, depths, and distances between errors."""
    from scipy.stats import ks_2samp  # SciPy is slow to import

    pooled: dict[str, dict[Measure, Sample]] = {}  # means over the models of a role
    for role, findings in models.items():
        best = [best_points(own, line) for own in findings]
        for measure in best[0] if best else ():
            arrays = zip(*(points[measure].sample for points in best), strict=True)
            pooled.setdefault(role, {})[measure] = tuple(np.mean(x, axis=0) for x in arrays)
    metrics = {role: {"forget": _metrics(by_measure)} for role, by_measure in pooled.items()}
    if line.name == UNATTACKED:
        for role in pooled:
            metrics[role]["retain"] = _metrics(samples(models[role][0][UNATTACKED]["0"], "retain"))
    depths, distance = {}, None
    if "retrained" in pooled:
        roles = ("original", "unlearned", "retrained")
        depths = {m: depth(m, *(pooled[role][m] for role in roles)) for m in pooled["unlearned"]}
        test = ks_2samp(*(pooled[role]["error"][0] for role in roles[1:]))
        distance = {"d": float(test.statistic), "p": float(test.pvalue)}
    return {
        "name": line.name,
        "title": line.title,
        "figures": metrics,
        "depth": depths,
        "distance": distance,
        "klom": _klom(models, line),
    }


def _klom(models: Models, line: Line) -> dict[str, dict[str, list[float | None]]]:
    """Return the divergence from two or more retrained models by set and role, see `klom`; otherwise {}."""
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
            for role, interval in intervals({r: [*map(errors, own)] for r, own in models.items()}).items()
        }
        for name, errors in sets.items()
    }


def _metrics(by_measure: Mapping[Measure, Sample]) -> dict[str, list[float | None]]:
    """Return the value and 95% interval of the calibrated "mse" and of "accuracy", the mean credit."""
    metrics = {}
    if "error" in by_measure:
        metrics["mse"] = plain(mean_interval(by_measure["error"][0]))
    if "accuracy" in by_measure:
        metrics["accuracy"] = plain(accuracy_interval(*by_measure["accuracy"]))
    return metrics


def _cost(original: Findings, unlearned: Findings) -> dict[str, list[float | None]]:
    """Return the ratio of masked MSEs and the drop in accuracy on retain test images."""
    before, after = (findings[UNATTACKED]["0"]["retain"] for findings in (original, unlearned))

    def ratio(chosen):
        return after["mse"][chosen].mean(-1) / before["mse"][chosen].mean(-1)

    cost = {"mse_ratio": plain(bootstrap(ratio, len(before["mse"])))}
    if "right" in before:
        cost["accuracy_drop"] = plain(mean_interval(before["right"].astype(float) - after["right"]))
    return cost


def _strongest(comparisons: Mapping[str, Sequence[Comparison]]) -> str | None:
    """Return the attack that recovers the most relative to the margins, or None without attacks."""
    strength = {name: max((c.excess - c.margin) / c.margin for c in cs) for name, cs in comparisons.items()}
    return max(strength, key=strength.__getitem__, default=None)


def _canaries(models: Models, lines: Sequence[Line]) -> tuple[list[dict], dict[str | None, Comparison]]:
    """Return how well models reconstruct marks by line, and comparisons with retrained models by attack."""
    rows, comparisons = [], dict[str | None, Comparison]()
    for line in lines:
        measured = {role: [_at_least_error(x, line) for x in own] for role, own in models.items()}
        if CANARIES not in measured["unlearned"][0]:
            continue
        sets = {role: [split_sets(x[CANARIES]["score"]) for x in xs] for role, xs in measured.items()}
        first = {role: xs[0][CANARIES]["found"] for role, xs in measured.items() if xs}
        scores = {
            role: {
                name: {**_scored(*pair), "found": float(split_sets(first[role])[name][0].sum())}
                for name, pair in sets[role][0].items()
            }
            for role in first
        }
        count = len(first["unlearned"]) // 4
        rows.append({"name": line.name, "title": line.title, "count": count, "models": scores})
        if sets["retrained"]:
            name = None if line.name == UNATTACKED else line.name
            own, *others = (x["forget"] for x in (sets["unlearned"][0], *sets["retrained"]))
            comparisons[name] = compare("marks", own, others)
    return rows, comparisons


def _at_least_error(findings: Findings, line: Line) -> Measured:
    """Return the measurements at the point with the least error; empty if no error was measured."""
    best = best_points(findings, line).get("error")
    return {} if best is None else {"0": findings[UNATTACKED]["0"], **findings[line.name]}[best.point]


def _membership(findings: Findings, models: Mapping[str, Findings]) -> dict[str, Any]:
    """Return the AUC and true positive rates of each score.

    Scores are the error, the error relative to the retrained model, and those of `membership_repeated`.
    """
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
    """Return how often perturbed images are recognized, relative to the retrained model, by role.

    "ratio" is the ratio of the means with its interval over images, or None if the retrained model recognizes
    none; "above" is the share of images with a ratio above 1.
    """
    name = "residual_knowledge"
    if name not in models.get("retrained", {}):
        return {}
    retrained = models["retrained"][name]["0"]["forget"]["right"]
    by_role = {}
    for role in ("original", "unlearned"):
        own = models[role][name]["0"]["forget"]["right"]

        def ratio(chosen, own=own):
            return own[chosen].mean(-1) / np.maximum(retrained[chosen].mean(-1), 1e-12)

        interval = plain(bootstrap(ratio, len(own))) if retrained.any() else [None] * 3
        by_role[role] = {"ratio": interval, "above": float(np.mean(own > retrained))}
    return by_role


def _layers(findings: Findings) -> dict[str, list[float | None]]:
    measured = {layer: sets["forget"] for layer, sets in findings["linear_probe"].items()}
    return {layer: plain(accuracy_interval(m["right"], m["label"])) for layer, m in measured.items()}


def _curve(findings: Findings, line: Line) -> list[dict[str, Any]]:
    points = {"0": findings[UNATTACKED]["0"], **findings[line.name]}
    return [{"step": int(step), **_metrics(samples(measured))} for step, measured in points.items()]
