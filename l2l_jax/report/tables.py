"""Tables of a report: rows of cells, text for the console, and a CSV file with all numbers."""

import csv
import io
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tabulate import tabulate

from l2l_jax.evals.metrics import BY_CLASS, METRICS
from l2l_jax.report.text import MODELS, sentences

Report = Mapping[str, Any]
SETS = ("retain", "forget")
ARROWS = {"higher": "↑", "lower": "↓"}
NOTHING = "—"
CSV_HEADER = ("attack", "model", "set", "figure", "value", "low", "high")


class Cell(NamedTuple):
    """A number with its interval, as text; the interval may be empty."""

    value: str
    interval: str = ""


class Row(NamedTuple):
    """Leading titles and cells of a row; its kind, which determines its style, is a set or an outcome."""

    titles: tuple[str, ...]
    cells: Sequence[Cell]
    kind: str = ""


class Table(NamedTuple):
    """A table with its headings."""

    headings: tuple[str, ...]
    rows: list[Row]

    def text(self, style: str = "simple") -> str:
        """Format the table for the console or for Markdown."""
        body = [[*row.titles, *(f"{c.value} {c.interval}".strip() for c in row.cells)] for row in self.rows]
        return tabulate(body, headers=self.headings, tablefmt=style, disable_numparse=True)


def cell(numbers: Sequence[float | None] | None, spec: str) -> Cell:
    """Format a number and, if known, the bounds of its interval as a cell; the number may be missing."""
    if numbers is None or numbers[0] is None:
        return Cell(NOTHING)
    value, *ends = (number if number is None else format(number, spec) for number in numbers)
    return Cell(str(value), "" if not ends or None in ends else f"{ends[0]} – {ends[1]}")


def console(report: Report) -> str:
    """Format the report for the console, headline first."""
    parts = ["\n".join(sentences(report)), metrics_table(report, intervals=False).text()]
    if report["audit"]:
        parts.append(attack_table(report["audit"], intervals=False).text())
    return "\n\n".join(parts)


def metrics_table(report: Report, *, intervals: bool = True) -> Table:
    """Return a table of the metrics on test images: a row for each set and model."""
    metrics = {name: METRICS[name] for name in METRICS if name in report["original"]["retain"]}
    rows = []
    for set_name in report["original"]:
        for model in models(report):
            ends = report["intervals"][model][set_name] if intervals else {}
            values = report[model][set_name]
            cells = [
                cell([values.get(name), *ends.get(name, ())], metric.format)
                for name, metric in metrics.items()
            ]
            rows.append(Row((set_name, model), cells, set_name))
    headings = (f"{metric.heading} {ARROWS[metric.better]}" for metric in metrics.values())
    return Table(("set", "model", *headings), rows)


def models(report: Report) -> list[str]:
    """Return the names of the models in a report."""
    return [name for name in MODELS if name in report]


# Headings of metrics after attacks, see `l2l_jax.audit.knowledge`
AUDITED = {"mse": "calibrated MSE", "accuracy": "corrected accuracy"}


def attack_table(audit: Mapping[str, Any], *, intervals: bool = True) -> Table:
    """Return a table of the metrics on forget images at the best point of each model's curve, by attack."""
    outcomes: dict[str, str] = {}  # the worst over all measures
    for entry in audit["comparisons"]:
        both = outcomes.get(entry["name"], entry["outcome"]), entry["outcome"]
        outcomes[entry["name"]] = max(both, key=("no more", "less", "open", "as much", "more").index)
    metrics = audit["results"][0]["figures"]
    columns = _columns(metrics["unlearned"]["forget"], metrics)
    headings = [f"{AUDITED[name]},\n{role}" for name, role in columns]
    rows = []
    for result in audit["results"]:
        values = [result["figures"][role]["forget"].get(name) for name, role in columns]
        values = [numbers and numbers[: 3 if intervals else 1] for numbers in values]
        outcome = outcomes[result["name"]]
        rows.append(Row((result["title"],), [Cell(outcome), *_cells(columns, values)], outcome))
    return Table(("attack", f"knows … than\n{audit['reference']}", *headings), rows)


def _columns(available: Collection[str], roles: Iterable[str]) -> list[tuple[str, str]]:
    """Return the metric and the model of each column of a table by attack or class."""
    return [(name, role) for name in BY_CLASS if name in available for role in roles]


def _headings(columns: Sequence[tuple[str, str]]) -> list[str]:
    return [f"{METRICS[name].heading},\n{role}" for name, role in columns]


def _cells(columns: Sequence[tuple[str, str]], values: Sequence[Sequence[float | None] | None]) -> list[Cell]:
    return [cell(numbers, METRICS[name].format) for numbers, (name, _) in zip(values, columns, strict=True)]


def depth_table(audit: Mapping[str, Any]) -> Table | None:
    """Return a table of resolved depths and of KLoM, or None without any."""
    titles = {"error": "depth by log error", "accuracy": "depth by accuracy"}
    measures = [m for m in titles if any(m in result["depth"] for result in audit["results"])]
    compared = [role for role in MODELS if audit["results"][0]["klom"]]
    rows = []
    for result in audit["results"]:
        depths = (result["depth"].get(measure) for measure in measures)
        values = [(d["value"], d["low"], d["high"]) if d and d["resolved"] else None for d in depths]
        values += [result["klom"]["forget"][role] for role in compared]
        if any(values):
            rows.append(Row((result["title"],), [cell(numbers, ".2f") for numbers in values]))
    headings = "attack", *(titles[m] for m in measures), *(f"KLoM,\n{role}" for role in compared)
    return Table(headings, rows) if rows else None


# Titles of scores of membership inference
MEMBERSHIP = {"error": "masked MSE", "relative_error": "masked MSE relative to the retrained model"}


def evidence_table(audit: Mapping[str, Any]) -> Table | None:
    """Return a table of membership inference, residual knowledge and linear probe: a column per model."""
    roles = list(audit["results"][0]["figures"])
    lines: dict[str, dict[str, Sequence[float]]] = {}
    for score in audit["membership"]["unlearned"]:
        title = MEMBERSHIP.get(score, f"several masks ({score.removeprefix('repeated_')})")
        by_role = {role: scores[score] for role, scores in audit["membership"].items() if score in scores}
        lines[f"membership by {title}: AUC"] = {role: own["auc"] for role, own in by_role.items()}
        for percent in audit["membership"]["unlearned"][score]["true_positives"]:
            lines[f"membership by {title}: true positive rate at {percent}% false positives"] = {
                role: [own["true_positives"][percent]] for role, own in by_role.items()
            }
    lines |= {f"KLoM of {name} images": by_role for name, by_role in audit["results"][0]["klom"].items()}
    lines["perturbed images recognized, relative to the retrained model"] = {
        role: own["ratio"] for role, own in audit["residual_knowledge"].items()
    }
    for layer in audit["layers"].get("unlearned", {}):
        accuracies = {role: layers[layer] for role, layers in audit["layers"].items()}
        lines[f"linear probe of {layer}: accuracy"] = accuracies
    rows = [
        Row((title,), [cell(numbers.get(role), ".3f") for role in roles])
        for title, numbers in lines.items()
        if numbers
    ]
    return Table(("", *roles), rows) if rows else None


def canary_table(audit: Mapping[str, Any]) -> Table | None:
    """Return a table of the reconstruction of canaries' marks by attack, or None without canaries."""
    rows = []
    for line in audit["canaries"]:
        scores = [sets[name] for name in ("forget", "retain") for sets in line["models"].values()]
        cells = [cell(x["auc"], ".2f") for x in scores]
        texts = [f"{c.value} ({x['found']:g})" for c, x in zip(cells, scores, strict=True)]
        rows.append(Row((line["title"],), [Cell(t, c.interval) for t, c in zip(texts, cells, strict=True)]))
    if not rows:
        return None
    roles = audit["canaries"][0]["models"]
    return Table(("attack", *(f"{name},\n{role}" for name in ("forget", "retain") for role in roles)), rows)


def class_table(report: Report) -> Table | None:
    """Return a table of metrics with a row for each class and columns for each model, or None if unknown."""
    classes = report.get("classes")
    if not classes:
        return None
    roles = [model for model in models(report) if model in classes]
    first = classes[roles[0]]
    available = {name for by_class in first.values() for values in by_class.values() for name in values}
    columns = _columns(available, roles)
    rows = []
    for set_name, by_class in first.items():
        for class_name, values in by_class.items():
            numbers = [classes[role][set_name].get(class_name, {}).get(name) for name, role in columns]
            titles = set_name, class_name, str(values.get("count", ""))
            rows.append(Row(titles, _cells(columns, [[number] for number in numbers]), set_name))
    return Table(("set", "class", "images", *_headings(columns)), rows)


def task_table(report: Report) -> Table | None:
    """Return a table of metrics on all tasks but the first and with other prompts, or None without any."""
    columns = _columns(report["original"]["forget"], models(report))
    rows = []
    for task, title in list(report.get("titles", {}).items())[1:]:
        for set_name in report["original"]:
            numbers = [report["tasks"][task][role][set_name].get(name) for name, role in columns]
            rows.append(Row((title, set_name), _cells(columns, [[number] for number in numbers]), set_name))
    return Table(("task", "set", *_headings(columns)), rows) if rows else None


def to_csv(report: Report) -> str:
    """Format all metrics with their 95% intervals as CSV, one number per line; missing bounds are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for model, sets in report["intervals"].items():
        for set_name, intervals in sets.items():
            for name, value in report[model][set_name].items():
                writer.writerow(("", model, set_name, name, value, *intervals.get(name, ("", ""))))
    if report["audit"] is not None:
        writer.writerows(_attack_lines(report["audit"]))
    return text.getvalue()


def _attack_lines(audit: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    for entry in audit["comparisons"]:
        numbers = entry["excess"], entry["low"], entry["high"]
        yield (entry["name"], "unlearned", "forget", f"excess_by_{entry['measure']}", *numbers)
    for result in audit["results"]:
        for model, sets in result["figures"].items():
            for set_name, metrics in sets.items():
                for name, interval in metrics.items():
                    yield (result["name"], model, set_name, name, *interval)
        for measure, depth in result["depth"].items():
            if depth["resolved"]:
                ends = depth["value"], depth["low"], depth["high"]
                yield (result["name"], "unlearned", "forget", f"depth_by_{measure}", *ends)
        for set_name, roles in result["klom"].items():
            yield from ((result["name"], role, set_name, "klom", *values) for role, values in roles.items())
        for name, value in (result["distance"] or {}).items():
            yield (result["name"], "unlearned", "forget", f"kolmogorov_smirnov_{name}", value, "", "")
    for line in audit["canaries"]:
        for model, sets in line["models"].items():
            for set_name, scores in sets.items():
                yield (line["name"], model, set_name, "auc_by_marks", *scores["auc"])
                yield (line["name"], model, set_name, "marks_found", scores["found"], "", "")
    for model, by_score in audit["membership"].items():
        for score, values in by_score.items():
            yield ("membership", model, "forget", f"auc_by_{score}", *values["auc"])
            for percent, rate in values["true_positives"].items():
                name = f"true_positives_at_{percent}%_by_{score}"
                yield ("membership", model, "forget", name, rate, "", "")
    for model, residual in audit["residual_knowledge"].items():
        yield ("residual_knowledge", model, "forget", "ratio_to_retrained", *residual["ratio"])
    for model, layers in audit["layers"].items():
        for layer, interval in layers.items():
            yield ("linear_probe", model, "forget", f"accuracy_from_{layer}", *interval)
