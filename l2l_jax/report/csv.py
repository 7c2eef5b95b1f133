"""The figures of a report as a table for spreadsheets: one number a line."""

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

HEADER = ("attack", "model", "set", "figure", "value", "low", "high")


def to_csv(report: Mapping[str, Any]) -> str:
    """All figures with their 95 % intervals; empty cells where there is none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows(_figures(report))
    if report["audit"] is not None:
        writer.writerows(_attacks(report["audit"]))
    return text.getvalue()


def _figures(report: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    for model, sets in report["intervals"].items():
        for of, intervals in sets.items():
            for name, value in report[model][of].items():
                yield ("", model, of, name, value, *intervals.get(name, ("", "")))


def _attacks(audit: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    for result in audit["results"]:
        for model, sets in result["figures"].items():
            for of, figures in sets.items():
                for name, interval in figures.items():
                    yield (result["name"], model, of, name, *interval)
        for kind in ("depth", "depth_untouched"):
            for measure, depth in result[kind].items():
                if depth["resolved"]:
                    ends = depth["value"], depth["low"], depth["high"]
                    yield (result["name"], "unlearned", "forget", f"{kind}_by_{measure}", *ends)
        if result["distance"] is not None:
            for name, value in result["distance"].items():
                yield (result["name"], "unlearned", "forget", f"kolmogorov_smirnov_{name}", value, "", "")
    for model, found in audit["membership"].items():
        for score, values in found.items():
            yield ("membership", model, "forget", f"auc_by_{score}", *values["auc"])
            yield (
                "membership", model, "forget", f"true_positives_by_{score}", values["true_positives"], "", ""
            )  # fmt: skip
    for model, layers in audit["layers"].items():
        for layer, interval in layers.items():
            yield ("linear_probe", model, "forget", f"accuracy_from_{layer}", *interval)
