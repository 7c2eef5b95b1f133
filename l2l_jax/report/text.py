"""Text of the report: a headline with the verdict and its cost, followed by the evidence."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Report = Mapping[str, Any]
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
MODELS = ("original", "unlearned", "retrained")
LISTED = 8  # maximum number of class names in a sentence


def headline(report: Report) -> list[str]:
    """Return the verdict, its cost and a missed retain budget as self-contained sentences."""
    names = listed(class_names(report, "forget"))
    if not report["audit"]:
        verdict = _unaudited(report, names)
    elif report["audit"]["reference"] == "original":
        verdict = _without_standard(report["audit"], names)
    else:
        verdict = _verdict(report["audit"]["verdict"], names)
    lines = [verdict, _cost(report)]
    budget = report.get("retain_budget")
    if budget and not budget["met"]:
        lines.append(
            f"The retain budget was missed: {budget['retain']['value']:.2f} times the original's error on "
            f"validation images, but at most {budget['budget']:g} times is allowed."
        )
    return lines


def details(report: Report) -> list[str]:
    """Return the sentences that follow the headline of an audited run."""
    audit = report["audit"]
    if not audit:
        return ["Run `python -m l2l_jax.audit` to test if the knowledge is forgotten or only hidden."]
    lines, verdict = [_knowledge(report)], audit["verdict"]
    if audit["reference"] != "original":
        if verdict["comparison"] is not None:
            kinds = {
                "forgotten": "The comparison closest to its margin",
                "undecided": "The inconclusive comparison",
            }
            kind = kinds.get(verdict["finding"], "The deciding comparison")
            attack = verdict["title"] or "no attack"
            lines.append(f"{kind}: {attack}, {describe_comparison(verdict['comparison'])}.")
        if verdict["unsettled_attacks"]:
            titles = {entry["name"]: entry["title"] for entry in audit["comparisons"]}
            attacks = "; ".join(titles[name] for name in verdict["unsettled_attacks"])
            lines.append(f"Inconclusive after: {attacks}.")
    if audit["canaries"]:
        lines.append(_marks(audit["canaries"][0]))
    return lines + _caveats(audit["yardstick"])


def sentences(report: Report) -> list[str]:
    """Return headline and details, for the console."""
    return [" ".join(headline(report)), *details(report)]


def listed(names: Sequence[Any]) -> str:
    """Join names as "a, b and c", shortened if there are many."""
    first = [str(name) for name in names[:LISTED]]
    if len(names) > LISTED:
        return f"{', '.join(first)} and {len(names) - LISTED} more classes"
    return first[0] if len(first) == 1 else f"{', '.join(first[:-1])} and {first[-1]}"


def class_names(report: Report, name: str) -> Sequence[Any]:
    """Return the names of the classes of a set."""
    return report["class_names"][name] if "class_names" in report else report["config"]["data"][name]


def _number(count: int) -> str:
    return NUMBERS[count] if count < len(NUMBERS) else str(count)


def _verdict(verdict: Mapping[str, Any], names: str) -> str:
    title, finding, count = verdict["title"], verdict["finding"], verdict["attacks"]
    retrained = "a model retrained without them"
    more, no_more = (f"the model knows {much} about {names} than {retrained}" for much in ("more", "no more"))
    if finding == "forgotten":
        after = f"after {_number(count)} attack{'' if count == 1 else 's'} " if count else ""
        little = f" There was little to forget: {retrained} also reconstructs them."
        return f"Forgotten: {after}{no_more}.{little if verdict['little_to_forget'] else ''}"
    if finding == "hidden":
        violated = len(verdict.get("violated_attacks", ()))
        attacks = f"one attack recovers knowledge ({title})"
        if violated > 1:
            attacks = f"{_number(violated)} attacks recover knowledge (the strongest: {title})"
        return f"Hidden, not forgotten: without an attack {no_more}, but {attacks}."
    if finding == "not forgotten":
        return f"Not forgotten: without any attack {more}."
    condition, unsettled = "even without an attack", len(verdict["unsettled_attacks"])
    if title:
        condition = f"after one attack ({title})"
        if unsettled > 1:
            condition = f"after {_number(unsettled)} attacks (the least conclusive: {title})"
    sentence = f"Undecided: {condition} it is unclear whether {more}."
    remedies = []
    if images := verdict["images_needed"]:
        digits = max(len(str(images)) - 2, 0)  # 1,283 is rounded to 1,300
        remedies.append(f"{round(images, -digits):,} test images")
    if models := verdict["retrained_needed"]:
        remedies.append(f"{models} retrained models")
    if remedies:
        sentence += f" About {' or '.join(remedies)} would decide."
    return sentence


def _without_standard(audit: Mapping[str, Any], names: str) -> str:
    """Describe the comparison with the original model if there is no retrained model."""
    if audit["verdict"]["finding"] == "not forgotten":
        return f"Not forgotten: without any attack the model knows as much about {names} as the original."
    sentence = f"No verdict: there is no model retrained without {names} to compare with."
    errors = [c for c in audit["comparisons"] if c["measure"] == "error"]
    strongest = max(errors, key=lambda c: c["excess"])
    if all(c["outcome"] == "as much" for c in audit["comparisons"] if c["name"] == strongest["name"]):
        return f"{sentence} One attack recovers as much as the original knows ({strongest['title']})."
    times = math.exp(-strongest["excess"])
    return (
        f"{sentence} After the strongest attack ({strongest['title']}) its calibrated MSE is {times:.2f} "
        "times the original's."
    )


def _unaudited(report: Report, names: str) -> str:
    before, after = (report[model]["forget"] for model in ("original", "unlearned"))
    if "accuracy" in after:
        return (
            f"Not audited. A classifier recognizes {names} in {_percent(after['accuracy'])} of the "
            f"reconstructions ({_percent(before['accuracy'])} before)."
        )
    ratio = after["mse"] / before["mse"]
    return f"Not audited. The masked MSE of {names} is {ratio:.1f} times the original's."


def _marks(unattacked: Mapping[str, Any]) -> str:
    """Describe how many planted marks the models reconstruct without an attack."""
    counts = {model: f"{sets['forget']['found']:g}" for model, sets in unattacked["models"].items()}
    own = counts.pop("unlearned")
    others = ", ".join(f"{model} {count}" for model, count in counts.items())
    total = unattacked["count"]
    return f"Of {total} marks planted in forget images, the unlearned model reconstructs {own} ({others})."


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def _signed(value: float, spec: str = "+.3f") -> str:
    return format(value, spec).replace("-", "−")


def _cost(report: Report) -> str:
    if report["audit"]:
        ratio, low, high = report["audit"]["cost"]["mse_ratio"]
    else:
        ratio = report["unlearned"]["retain"]["mse"] / report["original"]["retain"]["mse"]
        low = high = None
    cost = f"Cost: masked MSE on the retained classes {_signed(100 * (ratio - 1), '+.0f')}%"
    if low is None:
        return f"{cost}."
    low, high = 100 * (low - 1), 100 * (high - 1)
    ends = f"{low:.0f}–{high:.0f}" if low >= 0 else f"{_signed(low, '+.0f')} to {_signed(high, '+.0f')}"
    return f"{cost} (95% CI {ends}%)."


def _knowledge(report: Report) -> str:
    """Describe the models' metrics on forget images without an attack, as in the evaluation."""
    metrics = {model: report[model]["forget"] for model in MODELS if model in report}
    values = {model: forget["mse"] for model, forget in metrics.items()}
    sentence = f"Without an attack, the masked MSE of forget images is {values.pop('unlearned'):.4f}"
    sentence += f" ({', '.join(f'{model} {value:.4f}' for model, value in values.items())})"
    shares = {model: forget["accuracy"] for model, forget in metrics.items() if "accuracy" in forget}
    if shares:
        sentence += f", and a classifier recognizes the class of {_percent(shares.pop('unlearned'))} of them"
        real = report.get("real_images", {}).get("forget", {}).get("accuracy")
        shares |= {} if real is None else {"real images": real}
        sentence += f" ({', '.join(f'{model} {_percent(share)}' for model, share in shares.items())})"
    return f"{sentence}."


def describe_comparison(entry: Mapping[str, Any]) -> str:
    """Describe a comparison with its bounds and margin, in units of the metric."""
    value, low, high, margin = entry["excess"], entry["low"], entry["high"], entry["margin"]
    if entry["measure"] == "error":
        ratio, least, most, limit = (f"{math.exp(-x):.2f}" for x in (value, high, low, margin))
        bounds = f"95% bounds {least} and {most}; margin {limit}"
        return f"calibrated MSE {ratio} times the retrained model's ({bounds})"
    name = {"accuracy": "corrected accuracy", "auc": "AUC", "marks": "AUC of planted marks"}[entry["measure"]]
    bounds = f"95% bounds {_signed(low)} and {_signed(high)}; margin {_signed(margin)}"
    return f"{name} {_signed(value)} compared with the retrained model ({bounds})"


def _caveats(standard: Mapping[str, Any] | None) -> list[str]:
    """Describe the limitations of the comparison with the retrained model."""
    if standard is None:
        return [
            "Name a model trained without the forget images with --config.audit.retrained=FOLDER, or train "
            "one with --config.audit.retrained=train."
        ]
    lines = []
    if standard["seeds"] is None and standard.get("count", 1) == 1:
        lines.append("There is only one retrained model; other seeds may differ by more than the margins.")
    if not standard["fair"]:
        lines.append(
            f"The retrained model reconstructs retain images at {standard['ratio'][0]:.2f} times the "
            "original's masked MSE (at most 1.1 is fair): the verdict is unreliable."
        )
    return lines
