"""The tables of a report, as rows of cells and as text for the console."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tabulate import tabulate

from l2l_jax.evals.metrics import METRICS
from l2l_jax.report.text import sentences

Report = Mapping[str, Any]

MODELS = ("original", "unlearned", "retrained")
SETS = ("retain", "forget")
ARROWS = {"higher": "↑", "lower": "↓"}
NOTHING = "—"
METRIC_TITLES = {"mse": "masked MSE", "accuracy": "accuracy"}
FORMATS = {"mse": ".4f", "accuracy": ".3f"}


class Cell(NamedTuple):
    """A number with its interval, as text; the interval may be empty."""

    value: str
    interval: str = ""


class Row(NamedTuple):
    """A line of a table.

    Attributes:
      titles: Leading cells.
      cells: The others.
      kind: For its style: a set or an outcome.
    """

    titles: tuple[str, ...]
    cells: tuple[Cell, ...]
    kind: str = ""


class Table(NamedTuple):
    """A table with its headings."""

    headings: tuple[str, ...]
    rows: tuple[Row, ...]

    def text(self, style: str = "simple") -> str:
        """Return the table for the console or for Markdown."""
        body = [[*row.titles, *(f"{c.value} {c.interval}".strip() for c in row.cells)] for row in self.rows]
        return tabulate(body, headers=self.headings, tablefmt=style, disable_numparse=True)


def console(report: Report) -> str:
    """Return the report for the console: the headline first."""
    parts = ["\n".join(sentences(report)), metrics_table(report, intervals=False).text()]
    if report["audit"]:
        parts.append(attack_table(report["audit"], intervals=False).text())
    return "\n\n".join(parts)


def metrics_table(report: Report, *, intervals: bool = True) -> Table:
    """Return the metrics of test images: a row for each set and model."""
    names = [name for name in METRICS if name in report["original"]["retain"]]
    headings = tuple(f"{METRICS[name].heading} {ARROWS[METRICS[name].better]}" for name in names)
    rows = []
    for set_name in report["original"]:
        for model in models(report):
            ends = report["intervals"][model][set_name] if intervals else {}
            values = report[model][set_name]
            cells = tuple(cell(values.get(name), ends.get(name), METRICS[name].format) for name in names)
            rows.append(Row((set_name, model), cells, set_name))
    return Table(("set", "model", *headings), tuple(rows))


def models(report: Report) -> list[str]:
    """Return the models that a report has."""
    return [name for name in MODELS if name in report]


def attack_table(audit: Mapping[str, Any], *, intervals: bool = True) -> Table:
    """Return metrics of the forget images at the best point of each model's curve, by attack."""
    outcomes = _outcomes(audit)
    roles = list(audit["results"][0]["figures"])
    names = [name for name in METRIC_TITLES if name in audit["results"][0]["figures"]["unlearned"]["forget"]]
    headings = [f"{METRIC_TITLES[name]},\n{role}" for name in names for role in roles]
    rows = []
    for result in audit["results"]:
        found = (result["figures"][role]["forget"].get(name) for name in names for role in roles)
        formats = (FORMATS[name] for name in names for _ in roles)
        cells = [
            cell(f and f[0], f[1:] if f and intervals else None, spec)
            for f, spec in zip(found, formats, strict=True)
        ]
        result_outcome = outcomes[result["name"]]
        rows.append(Row((result["title"],), (Cell(result_outcome), *cells), result_outcome))
    return Table(("attack", f"knows … than\n{audit['reference']}", *headings), tuple(rows))


def _outcomes(audit: Mapping[str, Any]) -> dict[str, str]:
    """Return what the unlearned model knows compared with the reference, by attack, over all measures."""
    found: dict[str, str] = {}
    for entry in audit["comparisons"]:
        known = found.get(entry["name"], entry["outcome"]), entry["outcome"]
        found[entry["name"]] = max(known, key=("no more", "less", "open", "as much", "more").index)
    return found


def depth_table(audit: Mapping[str, Any]) -> Table | None:
    """Return depths where original and retrained model clearly differ; None without any."""
    titles = {"error": "depth by log error", "accuracy": "depth by accuracy"}
    measures = [m for m in titles if any(m in r["depth"] for r in audit["results"])]
    rows = [
        Row((result["title"],), tuple(_depth(result["depth"].get(measure)) for measure in measures))
        for result in audit["results"]
    ]
    rows = [row for row in rows if any(c.value != NOTHING for c in row.cells)]
    return Table(("attack", *(titles[m] for m in measures)), tuple(rows)) if rows else None


def _depth(depth: Mapping[str, Any] | None) -> Cell:
    if depth is None or not depth["resolved"]:
        return Cell(NOTHING)
    return cell(depth["value"], (depth["low"], depth["high"]), ".2f")


def evidence_table(audit: Mapping[str, Any]) -> Table | None:
    """Return membership inference and the linear probe by layer: a column for each model."""
    roles = list(audit["results"][0]["figures"])
    rows = []
    for score, title in (
        ("error", "masked MSE"),
        ("relative_error", "masked MSE relative to the retrained model"),
    ):
        found = {role: scores[score] for role, scores in audit["membership"].items() if score in scores}
        if found:
            aucs = (found[r]["auc"] if r in found else None for r in roles)
            cells = tuple(cell(auc and auc[0], auc and auc[1:], ".3f") for auc in aucs)
            rows.append(Row((f"membership by {title}: AUC",), cells))
            rates = (found[r]["true_positives"] if r in found else None for r in roles)
            cells = tuple(cell(rate, None, ".3f") for rate in rates)
            rows.append(Row((f"membership by {title}: true positives at 1 % false positives",), cells))
    for layer in audit["layers"].get("unlearned", {}):
        cells = tuple(cell(audit["layers"][r][layer][0], audit["layers"][r][layer][1:], ".3f") for r in roles)
        rows.append(Row((f"linear probe of {layer}: accuracy",), cells))
    return Table(("", *roles), tuple(rows)) if rows else None


def class_table(report: Report) -> Table | None:
    """Return metrics by class: a row for each class, columns for each model; None if they are unknown."""
    classes = report.get("classes")
    if not classes:
        return None
    roles = [model for model in models(report) if model in classes]
    first = classes[roles[0]]
    names = [n for n in METRIC_TITLES if any(n in values for s in first.values() for values in s.values())]
    rows = []
    for set_name, of_classes in first.items():
        for class_name, values in of_classes.items():
            found = (classes[r][set_name].get(class_name, {}).get(n) for n in names for r in roles)
            formats = (FORMATS[n] for n in names for _ in roles)
            cells = tuple(cell(value, None, spec) for value, spec in zip(found, formats, strict=True))
            rows.append(Row((set_name, class_name, str(values.get("count", ""))), cells, set_name))
    headings = (f"{METRIC_TITLES[n]},\n{r}" for n in names for r in roles)
    return Table(("set", "class", "images", *headings), tuple(rows))


def cell(value: float | None, ends: Sequence[float | None] | None, spec: str) -> Cell:
    """Return a cell of a number, which may be missing, and the ends of its interval."""
    if value is None:
        return Cell(NOTHING)
    if ends is None or None in ends:
        return Cell(format(value, spec), "")
    return Cell(format(value, spec), f"{ends[0]:{spec}} – {ends[1]:{spec}}")
