"""The figures of a report as tables, for the console and as one HTML file that needs no other."""

import base64
import importlib.resources
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from tabulate import tabulate

from l2l_jax.evals.metrics import METRICS
from l2l_jax.evals.tables import reasons
from l2l_jax.report.text import headline, sentences

MODELS = ("original", "unlearned", "retrained")
SETS = ("retain", "forget")
ARROWS = {"higher": "↑", "lower": "↓"}
DEPTHS = {"accuracy": "depth by accuracy", "error": "depth by log error"}
NOTHING = "—"


def figure_names(report: Mapping[str, Any]) -> list[str]:
    """Those of `METRICS` that the report has."""
    return [name for name in METRICS if name in report["original"]["retain"]]


def models(report: Mapping[str, Any]) -> list[str]:
    """Those of `MODELS` that the report has."""
    return [name for name in MODELS if name in report]


def table(report: Mapping[str, Any]) -> str:
    """The figures of a report as a table for the console."""
    names = figure_names(report)
    rows = [
        [of, model, *(report[model][of].get(name) for name in names)]
        for of in report["original"]
        for model in models(report)
    ]
    headers = ["set", "model", *(METRICS[name].heading for name in names)]
    return tabulate(rows, headers=headers, floatfmt=("", "", *(METRICS[name].format for name in names)))


def attack_table(audit: Mapping[str, Any], style: str = "simple") -> str:
    """What attacks left, as a table for the console or for Markdown."""
    body = []
    for row in attack_rows(audit):
        cells = (f"{c['value']} {c['interval']}".strip() for c in row["cells"])
        body.append([row["title"], *cells])
    return tabulate(body, headers=["attack", *attack_headings(audit)], tablefmt=style, disable_numparse=True)


def titles(audit: Mapping[str, Any]) -> dict[str, str]:
    """Titles of the attacks by their names."""
    return {result["name"]: result["title"] for result in audit["results"]}


def page(report: Mapping[str, Any], drawn: Mapping[str, pathlib.Path], title: str) -> str:
    """The report as HTML.

    Args:
      report: what metrics.json holds.
      drawn: PNG files: "restorations", "losses" and, where there are any, "features" and "relearning".
      title: of the run.
    """
    template = importlib.resources.files(__package__).joinpath("report.html.j2").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    audit, names = report["audit"], figure_names(report)
    pictures = {name: _embedded(path) for name, path in drawn.items()}
    said = {} if audit is None else {"headline": headline(audit), "sentences": sentences(report)}
    attacks = {}
    if audit is not None:
        attacks = {
            "attack_headings": attack_headings(audit),
            "attack_rows": attack_rows(audit),
            "other_rows": _other_rows(audit),
            "shown_attack": titles(audit).get(audit["shown_attack"]),
            "audited": [name for name in MODELS if name in audit["results"][0]["figures"]],
        }
    return environment.from_string(template).render(
        report=report,
        headings=[f"{METRICS[name].heading} {ARROWS[METRICS[name].better]}" for name in names],
        rows=[_row(report, of, model, names) for of in report["original"] for model in models(report)],
        unavailable=reasons(report),
        pictures=pictures,
        config=json.dumps(report["config"], indent=2),
        title=title,
        **said,
        **attacks,
    )


def _embedded(path: pathlib.Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _row(report: Mapping[str, Any], of: str, model: str, names: Sequence[str]) -> dict[str, Any]:
    cells = [
        _cell(report[model][of].get(name), report["intervals"][model][of].get(name), METRICS[name].format)
        for name in names
    ]
    return {"of": of, "model": model, "cells": cells}


def _cell(value: float | None, ends: Sequence[float] | None, how: str) -> dict[str, str]:
    if value is None:  # too few images of this set
        return _missing()
    interval = "" if ends is None or None in ends else f"{ends[0]:{how}} – {ends[1]:{how}}"
    return {"value": format(value, how), "interval": interval}


def attack_headings(audit: Mapping[str, Any]) -> list[str]:
    """Headings of `attack_rows`, without the first."""
    first = audit["results"][0]
    figures = [
        f"{'accuracy' if name == 'accuracy' else 'hole MSE'}, {model}"
        for name in _attack_figures(audit)
        for model in first["figures"]
    ]
    if not first["depth"]:
        return figures
    untouched = (f"{DEPTHS[measure]}, original untouched" for measure in first["depth"])
    return [*(DEPTHS[measure] for measure in first["depth"]), *untouched, "KS D", *figures]


def _attack_figures(audit: Mapping[str, Any]) -> list[str]:
    """Names of the figures that are told of each attack, the plainest first."""
    return sorted(audit["results"][0]["figures"]["unlearned"]["forget"])


def attack_rows(audit: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each attack left of the forget images: title, cells, and whether it left least."""
    rows = []
    for result in audit["results"]:
        cells = [
            _depth(result[kind].get(measure))
            for kind in ("depth", "depth_untouched")
            for measure in audit["results"][0]["depth"]
        ]
        if result["distance"] is not None:
            cells.append(_cell(result["distance"]["d"], None, ".2f"))
        for name in _attack_figures(audit):
            for sets in result["figures"].values():
                known = sets["forget"].get(name)
                how = ".3f" if name == "accuracy" else ".4f"
                cells.append(_missing() if known is None else _cell(known[0], known[1:], how))
        weakest = result["name"] == audit["verdict"]["weakest_attack"]
        rows.append({"title": result["title"], "cells": cells, "weakest": weakest})
    return rows


def _missing() -> dict[str, str]:
    return {"value": NOTHING, "interval": ""}


def _depth(depth: Mapping[str, Any] | None) -> dict[str, str]:
    if depth is None or not depth["resolved"]:
        return _missing()
    return _cell(depth["value"], (depth["low"], depth["high"]), ".2f")


def _other_rows(audit: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Membership and the linear probe: a row for each quantity, a cell for each model."""
    audited = list(audit["results"][0]["figures"])
    rows = []
    for score, title in (("error", "by the error"), ("relative_error", "relative to the retrained model")):
        found = {model: scores[score] for model, scores in audit["membership"].items() if score in scores}
        if not found:
            continue
        for name, heading in (("auc", "AUC"), ("true_positives", "true positives at 1 % false ones")):
            cells = []
            for model in audited:
                if model not in found:
                    cells.append(_missing())
                elif name == "auc":
                    cells.append(_cell(found[model]["auc"][0], found[model]["auc"][1:], ".3f"))
                else:
                    cells.append(_cell(found[model][name], None, ".3f"))
            rows.append({"title": f"membership {title}: {heading}", "cells": cells})
    for layer in audit["layers"].get("unlearned", {}):
        values = [audit["layers"][model][layer] for model in audited]
        cells = [_cell(value[0], value[1:], ".3f") for value in values]
        rows.append({"title": f"class read from encoder features: {layer}", "cells": cells})
    return rows
