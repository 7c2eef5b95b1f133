"""The metrics of a report as a table for spreadsheets: one number a line."""

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

HEADER = ("attack", "model", "set", "figure", "value", "low", "high")


def to_csv(report: Mapping[str, Any]) -> str:
    """Return all metrics with their 95% intervals; cells are empty where there is none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows(_metrics(report))
    if report["audit"] is not None:
        writer.writerows(_attacks(report["audit"]))
    return text.getvalue()


def _metrics(report: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    for model, sets in report["intervals"].items():
        for set_name, intervals in sets.items():
            for name, value in report[model][set_name].items():
                yield ("", model, set_name, name, value, *intervals.get(name, ("", "")))


def _attacks(audit: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
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
        for name, value in (result["distance"] or {}).items():
            yield (result["name"], "unlearned", "forget", f"kolmogorov_smirnov_{name}", value, "", "")
    for model, found in audit["membership"].items():
        for score, values in found.items():
            yield ("membership", model, "forget", f"auc_by_{score}", *values["auc"])
            rate = values["true_positives"]
            yield ("membership", model, "forget", f"true_positives_by_{score}", rate, "", "")
    for model, layers in audit["layers"].items():
        for layer, interval in layers.items():
            yield ("linear_probe", model, "forget", f"accuracy_from_{layer}", *interval)
