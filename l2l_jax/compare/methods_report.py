"""The comparison of methods on paper: a table, a picture, and the ablation's plot."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from l2l_jax.config import Config
from l2l_jax.evals.evaluator import Evaluation
from l2l_jax.evals.metrics import METRICS
from l2l_jax.report import pictures
from l2l_jax.report.tables import SETS
from l2l_jax.utils.io import atomic_write

COLUMNS = (
    "fid", "inception_score", "clip_cosine", "classifier_distance", "classifier_score", "accuracy", "mse",
)  # fmt: skip
"""The figures of a comparison, where there are any: those of the paper's tables, and those of the digits."""


def table(rows: Mapping[str, Mapping[str, Any]], style: str = "simple") -> str:
    """Format a table: rows are methods; columns are `COLUMNS` on the retain set, then on the forget set."""
    columns = [name for name in COLUMNS if name in rows["original"]["retain"]]
    headers = ["method", *(f"{of} {METRICS[name].heading}" for of in SETS for name in columns)]
    body = []
    for method, row in rows.items():
        if "failed" in row:
            body.append([method, "diverged"])
        else:
            body.append([method, *(row[of][name] for of in SETS for name in columns)])
    formats = ("", *[METRICS[name].format for name in columns] * len(SETS))
    return tabulate(body, headers=headers, floatfmt=formats, tablefmt=style)


def depth_table(rows: Mapping[str, Mapping[str, Any]], style: str = "simple") -> str:
    """Format verdicts of audited methods and depths after each attack, by accuracy / by log error."""
    audits = {method: row["audit"] for method, row in rows.items() if "audit" in row}
    columns = {r["name"]: r["title"] for r in next(iter(audits.values()))["results"]}
    body = []
    for method, audit in audits.items():
        depths = {r["name"]: r["depth"] for r in audit["results"]}
        body.append([method, audit["verdict"]["finding"], *(_depths(depths[name]) for name in columns)])
    return tabulate(body, headers=["depth", "verdict", *columns.values()], tablefmt=style)


def _depths(depths: Mapping[str, Any]) -> str:
    return " / ".join(f"{d['value']:.2f}" if d["resolved"] else "—" for d in depths.values()) or "—"


def tables(rows: Mapping[str, Mapping[str, Any]], style: str = "simple") -> str:
    """Format `table` and, where methods were audited, `depth_table`."""
    audited = any("audit" in row for row in rows.values())
    return "\n\n".join([table(rows, style), *([depth_table(rows, style)] if audited else [])])


def write(
    folder: pathlib.Path,
    config: Config,
    evaluation: Evaluation,
    rows: Mapping[str, Mapping[str, Any]],
    shown: Mapping[str, Mapping[str, np.ndarray] | None],
    alphas: Sequence[float],
) -> None:
    """Write comparison.json, comparison.md, comparison.png and, for an ablation, alphas.png.

    Args:
      folder: Folder of the comparison.
      config: The comparison's configuration.
      evaluation: The evaluation of the models.
      rows: Figures by row.
      shown: Restorations of the images of the picture by row, then by set; None for a row that
        diverged.
      alphas: The weights of the ablation.
    """
    report = {"rows": rows, "config": config.describe()}
    atomic_write(folder / "comparison.json", json.dumps(report, indent=2) + "\n")
    atomic_write(folder / "comparison.md", tables(rows, "github") + "\n")
    drawn = {name: sets for name, sets in shown.items() if sets is not None}
    pictures.save_methods(folder / "comparison.png", evaluation, drawn)
    if alphas:
        own = config.unlearn.alpha
        names = {a: "encoder" if a == own else f"encoder, alpha {a:g}" for a in sorted({*alphas, own})}
        kept = {f"α = {a:g}": rows[name] for a, name in names.items() if "failed" not in rows[name]}
        pictures.save_tradeoff(folder / "alphas.png", {"original": rows["original"], **kept})
