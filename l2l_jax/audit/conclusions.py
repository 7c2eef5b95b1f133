"""What the findings on three models come to: figures, depths, a verdict; all JSON-able."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from l2l_jax.audit.attacks.membership import relative_error, scores
from l2l_jax.audit.depth import MEASURES, Depth, Measure, Sample, SeedSpread, depth, plain
from l2l_jax.audit.examination import UNTOUCHED, Findings
from l2l_jax.audit.measuring import Measured
from l2l_jax.audit.verdict import DEEP, SHALLOW, Verdict, decide
from l2l_jax.evals.intervals import Interval, bootstrap, mean_interval

ROLES = ("original", "unlearned", "retrained")

TITLES = {
    UNTOUCHED: "before any attack",
    "retain_tuning": "retain images only",
    "fresh_decoder_retain": "fresh decoder, retain images",
    "fresh_decoder_all": "fresh decoder, all images",
    "membership": "membership",
    "linear_probe": "linear probe",
    "views": "view",
    "relearning": "forget images",
}


TUNING = ("retain_tuning", "relearning_")
"""Attacks that train the model itself further."""


class Result(NamedTuple):
    """One line of the audit's table: an attack at its end.

    Attributes:
      name: of the attack; views have one line each.
      title: for people.
      attack, point: where in the findings.
    """

    name: str
    title: str
    attack: str
    point: str


def conclude(findings: Mapping[str, Findings], yardstick: Mapping[str, Any] | None) -> dict[str, Any]:
    """The audit of an unlearned model.

    Args:
      findings: of the models "original", "unlearned" and, where there is a yardstick, "retrained".
      yardstick: facts about the retrained model: "origin", "ratio" of its mask error on retain images to the
        original's, "fair", and "seeds": how much its seed matters, None where that is unknown.

    Returns:
      "verdict", "yardstick", "thresholds", "results": a line for each attack, with figures and depths;
      "curves" of the trainings; "layers" of the probe.
    """
    models = [role for role in ROLES if role in findings]
    results = list(_results(findings["unlearned"]))
    seeds = (yardstick or {}).get("seeds")
    depths = {r.name: _depths(findings, r, seeds) for r in results} if "retrained" in models else {}
    verdict, titles = _verdict(findings, depths), {r.name: r.title for r in results}
    return {
        "verdict": {
            **verdict.describe(),
            "title": None if verdict.weakest is None else titles[verdict.weakest],
            "unresolved_titles": [titles[name] for name in verdict.unresolved],
        },
        "shown_attack": _shown_attack(results, depths),
        "thresholds": {"deep": DEEP, "shallow": SHALLOW},
        "yardstick": yardstick,
        "cost": _cost(findings),
        "results": [
            {
                "name": r.name,
                "title": r.title,
                "figures": {m: figures(findings[m][r.attack][r.point]) for m in models},
                "depth": {measure: d.describe() for measure, d in depths.get(r.name, {}).items()},
                "depth_untouched": _untouched(findings, r, seeds),
                "distance": _distance(findings, r),
            }
            for r in results
            if r.attack not in ("membership", "linear_probe")
        ],
        "membership": {m: _membership(findings, m) for m in models if "membership" in findings[m]},
        "membership_depth": _described(depths.get("membership")),
        "layers": {m: _layers(findings[m]) for m in models if "linear_probe" in findings[m]},
        "layers_depth": _described(depths.get("linear_probe")),
        "curves": {
            attack: {m: _curve(findings[m][UNTOUCHED], findings[m][attack]) for m in models}
            for attack in findings["unlearned"]
            if attack.startswith(TUNING)
        },
    }


def seed_spread(models: Sequence[Findings]) -> dict[str, dict[str, dict[Measure, float]]]:
    """How much models that differ by their seed alone differ in what they know.

    Args:
      models: the findings on each of them.

    Returns:
      The standard deviation over the models by result, point and measure, in the units of `depth.MEASURES`.
    """
    spread: dict[str, dict[str, dict[Measure, float]]] = {}
    for r in _results(models[0]):
        known = [_samples(findings[r.attack][r.point]) for findings in models]
        spread[r.name] = {
            r.point: {
                measure: round(float(np.std([MEASURES[measure](*k[measure]) for k in known], ddof=1)), 4)
                for measure in known[0]
            }
        }
    return spread


def figures(measured: Measured) -> dict[str, dict[str, list[float]]]:
    """Value and ends of the 95 % interval of "mse" and "accuracy", by set."""
    names = {"mse": "mse", "right": "accuracy"}
    return {
        of: {names[name]: plain(mean_interval(values)) for name, values in arrays.items() if name in names}
        for of, arrays in measured.items()
    }


def _results(findings: Findings) -> Iterator[Result]:
    for attack, points in findings.items():
        if attack == "views":
            for view in points:
                yield Result(f"view: {view}", f"{TITLES['views']}: {view}", attack, view)
            continue
        last = list(points)[-1]
        title = TITLES.get(attack) or f"{attack.removeprefix('relearning_')} {TITLES['relearning']}"
        steps = f", {last} steps" if last.isdigit() and int(last) else ""
        yield Result(attack, title + steps, attack, last)


def _samples(measured: Measured) -> dict[Measure, Sample]:
    """What depth can be read from."""
    if "members" in measured:
        return {"auc": (measured["members"]["mse"], measured["others"]["mse"])}
    forget = measured["forget"]
    known: dict[Measure, Sample] = {}
    if "right" in forget:
        known["accuracy"] = (forget["right"],)
    if "mse" in forget:
        known["error"] = (forget["mse"],)
    return known


def _depths(
    findings: Mapping[str, Findings],
    result: Result,
    seeds: Mapping[str, Any] | None,
    untouched: bool = False,
) -> dict[Measure, Depth]:
    """Depths after an attack on all three models, or with the untouched original for "original"."""
    places = {role: (result.attack, result.point) for role in ROLES}
    if untouched:
        places["original"] = (UNTOUCHED, "0")
    samples = {role: _samples(findings[role][attack][point]) for role, (attack, point) in places.items()}
    return {
        measure: depth(measure, *(samples[role][measure] for role in ROLES), _spread(seeds, result, measure))
        for measure in samples["unlearned"]
    }


def _spread(seeds: Mapping[str, Any] | None, result: Result, measure: Measure) -> SeedSpread | None:
    """What is known of other seeds after the same attack of as many steps."""
    if seeds is None:
        return None
    deviation = seeds["spread"].get(result.name, {}).get(result.point, {}).get(measure)
    return None if deviation is None else SeedSpread(deviation, seeds["count"])


def _untouched(
    findings: Mapping[str, Findings], result: Result, seeds: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Depths after an attack that trains the model itself, against an original that nobody attacked: tuning
    wears off some of what the original knows, too."""
    if "retrained" not in findings or not result.attack.startswith(TUNING):
        return {}
    return {measure: d.describe() for measure, d in _depths(findings, result, seeds, untouched=True).items()}


def _verdict(findings: Mapping[str, Findings], depths: Mapping[str, Mapping[Measure, Depth]]) -> Verdict:
    if depths:
        attacks = {name: list(found.values()) for name, found in depths.items() if name != UNTOUCHED}
        return decide(list(depths[UNTOUCHED].values()), attacks)
    changed = [
        _difference(measure, *(findings[role][UNTOUCHED]["0"] for role in ROLES[:2])).low > 0
        for measure in _samples(findings["unlearned"][UNTOUCHED]["0"])
    ]
    return Verdict("undecided" if any(changed) else "not forgotten", None, None, not any(changed))


def _difference(measure: Measure, before: Measured, after: Measured) -> Interval:
    """How much less of the forget set the second model knows than the first."""
    samples = [[np.asarray(x, np.float64) for x in _samples(m)[measure]] for m in (before, after)]

    def less(*chosen):
        known = [MEASURES[measure](*(x[i] for x, i in zip(s, chosen, strict=True))) for s in samples]
        return known[0] - known[1]

    return bootstrap(less, *(len(x) for x in samples[0]))


def _shown_attack(results: Sequence[Result], depths: Mapping[str, Mapping[Measure, Depth]]) -> str | None:
    """The training attack that leaves least, by what can be resolved, or the first; None without any."""
    trainings = [r.name for r in results if r.point.isdigit() and int(r.point)]

    def least(name: str) -> float:
        return min((d.value for d in depths.get(name, {}).values() if d.resolved), default=math.inf)

    return min(trainings, key=least, default=None)


def _cost(findings: Mapping[str, Findings]) -> dict[str, list[float]]:
    """Of the retain test images: the mask error after over before, and how much the accuracy has dropped."""
    before, after = (findings[role][UNTOUCHED]["0"]["retain"] for role in ROLES[:2])

    def ratio(i):
        return after["mse"][i].mean(-1) / before["mse"][i].mean(-1)

    cost = {"mse_ratio": plain(bootstrap(ratio, len(before["mse"])))}
    if "right" in before:
        drop = before["right"].astype(float) - after["right"]
        cost["accuracy_drop"] = plain(mean_interval(drop))
    return cost


def _distance(findings: Mapping[str, Findings], result: Result) -> dict[str, float] | None:
    """Kolmogorov-Smirnov distance of the forget images' mask errors, unlearned against retrained."""
    if "retrained" not in findings:
        return None
    errors = [findings[role][result.attack][result.point]["forget"]["mse"] for role in ROLES[1:]]
    from scipy.stats import ks_2samp  # takes a second to load

    test = ks_2samp(*errors)
    return {"d": float(test.statistic), "p": float(test.pvalue)}


def _membership(findings: Mapping[str, Findings], model: str) -> dict[str, Any]:
    """AUC with its interval and true positives, by the error and by the error relative to the reference."""
    measured = findings[model]["membership"]["0"]
    errors = [measured[name]["mse"] for name in ("members", "others")]
    found = {"error": _scored(*errors)}
    if "retrained" in findings and model != "retrained":
        reference = findings["retrained"]["membership"]["0"]
        relative = [
            relative_error(own, reference[name]["mse"])
            for own, name in zip(errors, ("members", "others"), strict=True)
        ]
        found["relative_error"] = _scored(*relative)
    return found


def _scored(members: np.ndarray, others: np.ndarray) -> dict[str, Any]:
    interval = bootstrap(lambda i, j: MEASURES["auc"](members[i], others[j]), len(members), len(others))
    return {"auc": plain(interval), "true_positives": scores(members, others).true_positives}


def _layers(findings: Findings) -> dict[str, list[float]]:
    points = findings["linear_probe"]
    return {layer: plain(mean_interval(m["forget"]["right"])) for layer, m in points.items()}


def _curve(start: Mapping[str, Measured], points: Mapping[str, Measured]) -> list[dict[str, Any]]:
    return [
        {"step": int(step), **figures(measured)["forget"]} for step, measured in {**start, **points}.items()
    ]


def _described(depths: Mapping[Measure, Depth] | None) -> dict[str, Any] | None:
    return None if depths is None else {measure: d.describe() for measure, d in depths.items()}
