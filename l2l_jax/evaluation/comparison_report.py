"""The comparison of methods on paper: a table, a picture, and the ablation's plot."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from l2l_jax.config import Config
from l2l_jax.evaluation import pictures
from l2l_jax.evaluation.bench import Bench
from l2l_jax.evaluation.report import HEADINGS, SETS

COLUMNS = ("fid", "inception_score", "accuracy", "mse")
"""The figures of a comparison, as in the paper's tables; accuracy takes the place of CLIP."""

SHOWN = "shown.npz"


def table(rows: Mapping[str, Mapping[str, Any]], style: str = "simple") -> str:
    """Rows are methods; columns are `COLUMNS` on the retain set, then on the forget set."""
    headers = ["method", *(f"{of} {HEADINGS[name]}" for of in SETS for name in COLUMNS)]
    body = []
    for method, row in rows.items():
        if "failed" in row:
            body.append([method, "diverged"])
        else:
            body.append([method, *(row[of][name] for of in SETS for name in COLUMNS)])
    formats = ("", *(".2f", ".2f", ".3f", ".4f") * len(SETS))
    return tabulate(body, headers=headers, floatfmt=formats, tablefmt=style)


def write(
    folder: pathlib.Path,
    config: Config,
    bench: Bench,
    rows: Mapping[str, Mapping[str, Any]],
    shown: Mapping[str, Mapping[str, np.ndarray] | None],
    alphas: Sequence[float],
) -> None:
    """Write comparison.json, comparison.md, comparison.png and, for an ablation, alphas.png.

    Args:
      folder: where to.
      config: the comparison's configuration.
      bench: where the models were judged.
      rows: figures by row.
      shown: restorations of the images of the picture by row, then by set; None for a row that
        diverged.
      alphas: the weights of the ablation.
    """
    report = {"rows": rows, "config": config.describe()}
    (folder / "comparison.json").write_text(json.dumps(report, indent=2) + "\n")
    (folder / "comparison.md").write_text(table(rows, "github") + "\n")
    chosen = pictures.choose(bench.tests, config.evaluate.picture_per_class)
    drawn = {name: sets for name, sets in shown.items() if sets is not None}
    pictures.save_grid(folder / "comparison.png", bench, chosen, drawn, methods_across=True)
    if alphas:
        by_alpha = {f"α = {config.unlearn.alpha:g}": rows["encoder"]}
        for alpha in alphas:
            if alpha != config.unlearn.alpha:
                by_alpha[f"α = {alpha:g}"] = rows[f"encoder, alpha {alpha:g}"]
        kept = {name: row for name, row in by_alpha.items() if "failed" not in row}
        pictures.save_tradeoff(folder / "alphas.png", {"original": rows["original"], **kept})


def save_shown(
    folder: pathlib.Path, bench: Bench, config: Config, restored: Mapping[str, np.ndarray]
) -> None:
    """Keep the restorations that the picture shows, by set, in `folder`."""
    chosen = pictures.choose(bench.tests, config.evaluate.picture_per_class)
    shown = {of: images[chosen[of]] for of, images in restored.items()}
    np.savez_compressed(folder / SHOWN, **shown)


def load_shown(folder: pathlib.Path) -> dict[str, np.ndarray] | None:
    """What `save_shown` kept, or None for a row that diverged."""
    path = folder / SHOWN
    if not path.exists():
        return None
    with np.load(path) as arrays:
        return dict(arrays)
