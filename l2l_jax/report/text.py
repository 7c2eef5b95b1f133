"""The report in words: the verdict and its cost in the headline, then what it rests on."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Report = Mapping[str, Any]
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
LISTED = 8  # class names in a sentence, at most


def headline(report: Report) -> list[str]:
    """Return the verdict, its cost and a missed retain budget, in sentences that need no other context."""
    names = listed(class_names(report, "forget"))
    if not report["audit"]:
        verdict = _unaudited(report, names)
    elif report["audit"]["reference"] == "original":
        verdict = _without_standard(report["audit"], names)
    else:
        verdict = _verdict(report["audit"]["verdict"], names)
    said = [verdict, _cost(report)]
    budget = report.get("retain_budget")
    if budget and not budget["met"]:
        said.append(
            f"The retain budget was missed: {budget['retain']['value']:.2f} times the original's error on "
            f"validation images, and {budget['budget']:g} were allowed."
        )
    return said


def details(report: Report) -> list[str]:
    """Return the sentences that follow the headline of an audited run."""
    audit = report["audit"]
    if not audit:
        return ["Nobody has attacked this model yet: `python -m l2l_jax.audit` tells forgotten from hidden."]
    said, verdict = [_knowledge(report)], audit["verdict"]
    if audit["reference"] != "original":
        if verdict["comparison"] is not None:
            kinds = {
                "forgotten": "The comparison closest to its margin",
                "undecided": "The comparison that is open",
            }
            kind = kinds.get(verdict["finding"], "The comparison that decides")
            which = verdict["title"] or "no attack"
            said.append(f"{kind}: {which}, {describe_comparison(verdict['comparison'])}.")
        if verdict["unsettled_attacks"]:
            titles = {entry["name"]: entry["title"] for entry in audit["comparisons"]}
            said.append(f"Open after: {'; '.join(titles[name] for name in verdict['unsettled_attacks'])}.")
    if audit["canaries"]:
        said.append(_marks(audit["canaries"][0]))
    return said + _caveats(audit["yardstick"])


def sentences(report: Report) -> list[str]:
    """Return headline and details, for the console."""
    return [" ".join(headline(report)), *details(report)]


def listed(names: Sequence[Any]) -> str:
    """Return names as "a, b and c", shortened if there are many."""
    shown = [str(name) for name in names[:LISTED]]
    if len(names) > LISTED:
        return f"{', '.join(shown)} and {len(names) - LISTED} more classes"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def class_names(report: Report, name: str) -> Sequence[Any]:
    """Return the names of the classes of a set."""
    return report["class_names"][name] if "class_names" in report else report["config"]["data"][name]


def _number(count: int) -> str:
    return NUMBERS[count] if count < len(NUMBERS) else str(count)


def _verdict(verdict: Mapping[str, Any], names: str) -> str:
    title, finding, count = verdict["title"], verdict["finding"], verdict["attacks"]
    never_saw = "a model that never saw them"
    more, no_more = (f"the model knows {much} about {names} than {never_saw}" for much in ("more", "no more"))
    if finding == "forgotten":
        after = f"after {_number(count)} attack{'' if count == 1 else 's'} " if count else ""
        little = f" There was little to forget: {never_saw} reconstructs them, too."
        return f"Forgotten: {after}{no_more}.{little if verdict['little_to_forget'] else ''}"
    if finding == "hidden":
        violated = len(verdict.get("violated_attacks", ()))
        culprits = f"one attack brings knowledge back ({title})"
        if violated > 1:
            culprits = f"{_number(violated)} attacks bring knowledge back (the strongest: {title})"
        return f"Hidden, not forgotten: without an attack {no_more}, but {culprits}."
    if finding == "not forgotten":
        return f"Not forgotten: without any attack {more}."
    where, unsettled = "even without an attack", len(verdict["unsettled_attacks"])
    if title:
        where = f"after one attack ({title})"
        if unsettled > 1:
            where = f"after {_number(unsettled)} attacks (above all: {title})"
    said = f"Undecided: {where} it is open whether {more}."
    ways = []
    if images := verdict["images_needed"]:
        digits = max(len(str(images)) - 2, 0)  # 1,283 is said as 1,300
        ways.append(f"{round(images, -digits):,} test images")
    if models := verdict["retrained_needed"]:
        ways.append(f"{models} retrained models")
    if ways:
        said += f" About {' or '.join(ways)} would decide."
    return said


def _without_standard(audit: Mapping[str, Any], names: str) -> str:
    """Compare with the original where there is no retrained model."""
    if audit["verdict"]["finding"] == "not forgotten":
        return f"Not forgotten: without any attack the model knows as much about {names} as the original."
    said = f"No verdict: there is no retrained model, one that never saw {names}, to compare with."
    errors = [c for c in audit["comparisons"] if c["measure"] == "error"]
    strongest = max(errors, key=lambda c: c["excess"])
    if all(c["outcome"] == "as much" for c in audit["comparisons"] if c["name"] == strongest["name"]):
        return f"{said} One attack brings back as much as the original knows ({strongest['title']})."
    times = math.exp(-strongest["excess"])
    return (
        f"{said} After the strongest attack ({strongest['title']}) its masked MSE is {times:.2f} times the "
        "original's."
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
    """Say how many planted marks the models restore without an attack."""
    found = {model: f"{sets['forget']['found']:g}" for model, sets in unattacked["models"].items()}
    own = found.pop("unlearned")
    others = ", ".join(f"{model} {count}" for model, count in found.items())
    count = unattacked["count"]
    return f"Of {count} marks planted in forget images the unlearned model restores {own} ({others})."


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _signed(value: float, spec: str = "+.3f") -> str:
    return format(value, spec).replace("-", "−")


def _cost(report: Report) -> str:
    if report["audit"]:
        ratio, low, high = report["audit"]["cost"]["mse_ratio"]
    else:
        ratio = report["unlearned"]["retain"]["mse"] / report["original"]["retain"]["mse"]
        low = high = None
    said = f"Cost: masked MSE on the retained classes {_signed(100 * (ratio - 1), '+.0f')} %"
    if low is None:
        return f"{said}."
    low, high = 100 * (low - 1), 100 * (high - 1)
    ends = f"{low:.0f}–{high:.0f}" if low >= 0 else f"{_signed(low, '+.0f')} to {_signed(high, '+.0f')}"
    return f"{said} (95% CI {ends} %)."


def _knowledge(report: Report) -> str:
    """Say what the models know of the forget images without an attack."""
    figures = report["audit"]["results"][0]["figures"]
    values = {model: sets["forget"]["mse"][0] for model, sets in figures.items()}
    said = f"Without an attack the masked MSE of forget images is {values.pop('unlearned'):.4f}"
    said += f" ({', '.join(f'{model} {value:.4f}' for model, value in values.items())})"
    shares = {m: s["forget"]["accuracy"][0] for m, s in figures.items() if "accuracy" in s["forget"]}
    if shares:
        said += f", and a classifier finds the class in {_percent(shares.pop('unlearned'))} of them"
        real = report.get("real_images", {}).get("forget", {}).get("accuracy")
        shares |= {} if real is None else {"real images": real}
        said += f" ({', '.join(f'{model} {_percent(share)}' for model, share in shares.items())})"
    return f"{said}."


def describe_comparison(found: Mapping[str, Any]) -> str:
    """Return a comparison with its bounds and margin, in units a reader knows."""
    value, low, high, margin = found["excess"], found["low"], found["high"], found["margin"]
    if found["measure"] == "error":
        ratio, least, most, limit = (f"{math.exp(-x):.2f}" for x in (value, high, low, margin))
        bounds = f"95% bounds {least} and {most}; margin {limit}"
        return f"masked MSE {ratio} times the retrained model's ({bounds})"
    name = {"accuracy": "accuracy", "auc": "AUC", "marks": "AUC of planted marks"}[found["measure"]]
    bounds = f"95% bounds {_signed(low)} and {_signed(high)}; margin {_signed(margin)}"
    return f"{name} {_signed(value)} against the retrained model ({bounds})"


def _caveats(standard: Mapping[str, Any] | None) -> list[str]:
    """Say what limits the comparison with the retrained model."""
    if standard is None:
        return [
            "Name a model that was trained without the forget images by --config.audit.retrained=FOLDER, or "
            "train one by --config.audit.retrained=train."
        ]
    said = []
    if standard["seeds"] is None and standard.get("count", 1) == 1:
        said.append("There is one retrained model; another seed may differ from it by more than the margins.")
    if not standard["fair"]:
        said.append(
            f"The retrained model reconstructs retain images at {standard['ratio'][0]:.2f} times the "
            "original's masked MSE (fair is up to 1.1): the verdict is not to be trusted."
        )
    return said
