"""Comparison of all methods from one pretrained model, and of the paper's method with proxies and weights.

Finished rows are not computed again: metrics, models and images of each row are stored.
"""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from l2l_jax.compare.setup import Setup, fields_of, incompatible, stamp
from l2l_jax.config import Config
from l2l_jax.data import splits
from l2l_jax.errors import Diverged, UserError
from l2l_jax.evals.evaluator import Evaluation
from l2l_jax.evals.metrics import METRICS
from l2l_jax.experiment import unlearn as unlearning
from l2l_jax.experiment.filtering import attack_filter, fit_filter, open_reader
from l2l_jax.experiment.phase import training_sets
from l2l_jax.experiment.workdir import Workdir, identify_images
from l2l_jax.methods import METHODS
from l2l_jax.models.base import Params
from l2l_jax.report import pictures, plots
from l2l_jax.report.tables import SETS
from l2l_jax.utils.io import ResultCache, atomic_write
from l2l_jax.utils.multihost import barrier, on_primary

logger = logging.getLogger(__name__)
Rows = Mapping[str, Mapping[str, Any]]
# Rows of filtered models, and the rows of the models without the filter
FILTERED = {"filter": "original", "undo, filter": "undo"}

COLUMNS = (
    "fid",
    "inception_score",
    "clip_cosine",
    "classifier_distance",
    "classifier_score",
    "accuracy",
    "mse",
)
"""Metrics of a comparison, if available: those of the paper's tables and those of the digits experiments."""


def compare(
    config: Config,
    workdir: pathlib.Path,
    alphas: Sequence[float] = (),
    proxy: Sequence[str] = (),
    generated: bool = False,
) -> dict[str, dict[str, Any]]:
    """Unlearn with every method from one pretrained model, evaluate, and write `workdir/comparison`.

    Args:
      config: Config; its method, alpha and proxies define the first row after the original model.
      workdir: Folder of the run; its pretrained model is used, or trained if missing.
      alphas: Additional weights of the forget term for the paper's method.
      proxy: Classes of the proxy row.
      generated: Whether to add a row with retain images that the original model generates from noise.

    Returns:
      By row: `{"retain": metrics, "forget": metrics}`, with "audit" if `config.audit` is enabled, or
      `{"failed": reason}` for a method that diverged. Methods that are incompatible with the config, such as
      "undo" with an adapter, are left out with a warning.
    """
    folder = workdir / "comparison"
    setup = Setup(config, workdir, folder / "audit")
    evaluation = setup.evaluation
    to_run = _checked_variants(config, setup, alphas, proxy, generated)
    setup.start()
    tests = identify_images(**{name: images.source for name, images in evaluation.tests.items()})
    cache = ResultCache(folder / "rows", {"inputs": setup.inputs(), "tests": tests})
    models: dict[str, Callable[[], Params]] = {"original": lambda: setup.original}
    rows = {"original": _evaluated(cache, "original", stamp(config), evaluation, models["original"])}
    for name, variant in to_run.items():
        if reason := incompatible(variant):
            logger.warning("%s is left out: %s", name, reason)
            continue
        own = folder / _entry(name)

        def unlearned(variant=variant, own=own):
            with barrier():
                sets = training_sets(variant, evaluation.train)
            return unlearning.unlearned_params(variant, Workdir(own, variant), setup.original, sets)

        models[name] = unlearned
        rows[name] = _evaluated(cache, name, stamp(variant), evaluation, unlearned)
        if config.audit.enabled and "failed" not in rows[name]:
            rows[name]["audit"] = setup.audit(own.name, unlearned())
    for name, base in FILTERED.items():
        if base in models and "failed" not in rows[base]:
            try:
                rows[name] = _filtered(cache, name, config, setup, models[base])
            except UserError as error:
                logger.warning("%s is left out: %s", name, error)

    def write() -> None:
        done = [name for name, row in rows.items() if "failed" not in row]
        examples = {name: images for name in done if (images := cache.get(f"{_entry(name)}-shown"))}
        _write(folder, config, rows, alphas)
        pictures.save_methods(folder / "comparison.png", evaluation, examples)

    on_primary(write)
    return rows


def _checked_variants(
    config: Config, setup: Setup, alphas: Sequence[float], proxy: Sequence[str], generated: bool
) -> dict[str, Config]:
    """Return the variants to unlearn with; report a mistake in the proxies before training anything."""
    evaluation = setup.evaluation
    with barrier():
        every_other = splits.retained_names(config.data, evaluation.class_names)[::2]
        stand_ins = tuple(proxy or config.data.proxy or every_other)
        to_run = dict(variants(config, setup.pretrained, alphas, stand_ins, generated))
        for variant in to_run.values():
            if variant.data != config.data:
                splits.training_sets(variant.data, evaluation.train, config.model.image_size)
    return to_run


def _filtered(
    cache: ResultCache, name: str, config: Config, setup: Setup, params: Callable[[], Params]
) -> dict[str, Any]:
    """Return the row of a model behind the filter of `config.filter`; refused images get a gray mask."""
    served, evaluation = params(), setup.evaluation
    reader = open_reader(config, evaluation)
    metadata = reader.describe(served)

    def fit() -> dict[str, np.ndarray]:
        return fit_filter(config, evaluation, reader, served).part()

    depends = stamp(config) | {"extra": metadata}
    guarded = reader.guard(served, cache.get_or_compute(f"{_entry(name)}-filter", fit, stamp=depends))
    row = _evaluated(cache, name, depends, evaluation.for_model(reader.model), lambda: guarded)
    if config.audit.enabled:
        filtered = reader, guarded
        row["audit"] = attack_filter(config, evaluation, setup.audits, setup.original, filtered, _entry(name))
    return row


def variants(
    config: Config,
    pretrained: str,
    alphas: Sequence[float],
    stand_ins: Sequence[Any],
    generated: bool = False,
) -> Iterator[tuple[str, Config]]:
    """Yield the name and config of each row after the original; `stand_ins` are the classes of the proxy row.

    An ablation of the weight uses fixed weights: with `alphas`, no row has a retain budget.
    """
    if alphas:
        config = dataclasses.replace(config, unlearn=dataclasses.replace(config.unlearn, retain_budget=None))

    def variant(data: Mapping[str, Any], **unlearn: Any) -> Config:
        images = dataclasses.replace(config.data, **{"proxy": (), **data})
        method, original = dataclasses.replace(config.unlearn, **unlearn), config.pretrained or pretrained
        return dataclasses.replace(config, pretrained=original, data=images, unlearn=method)

    for method in METHODS:
        yield method, variant({}, **fields_of(method))
    replaced = {"proxy": tuple(stand_ins), "retain_ratio": 1.0}
    yield "encoder, proxy retain", variant(replaced, method="encoder")
    if generated:
        yield "encoder, generated retain", variant({"retain_images": "generated"}, method="encoder")
    for alpha in alphas:
        if alpha != config.unlearn.alpha:
            yield f"encoder, alpha {alpha:g}", variant({}, method="encoder", alpha=alpha)


def _evaluated(
    cache: ResultCache, name: str, stamp: Any, evaluation: Evaluation, params: Callable[[], Params]
) -> dict[str, Any]:
    def evaluate() -> dict[str, Any]:
        try:
            result = evaluation.evaluate(params(), name)
        except Diverged as error:
            return {"failed": str(error)}
        cache.put_shared(f"{_entry(name)}-shown", dict(result.shown))
        return result.metrics

    return dict(cache.get_or_compute(_entry(name), evaluate, stamp=stamp))


def _entry(name: str) -> str:
    return name.replace(", ", "_").replace(" ", "_")


def table(rows: Rows, style: str = "simple") -> str:
    """Format a table with a row per method, and `COLUMNS` on the retain set and on the forget set."""
    columns = [name for name in COLUMNS if name in rows["original"]["retain"]]
    body = [
        [
            method,
            *(["diverged"] if "failed" in row else [row[split][name] for split in SETS for name in columns]),
        ]
        for method, row in rows.items()
    ]
    headers = ["method", *(f"{split} {METRICS[name].heading}" for split in SETS for name in columns)]
    formats = ("", *[METRICS[name].format for name in columns] * len(SETS))
    return tabulate(body, headers=headers, floatfmt=formats, tablefmt=style)


def depth_table(rows: Rows, style: str = "simple") -> str:
    """Format the verdicts on audited methods and depths after each attack, by accuracy / by log error."""
    audits = {method: row["audit"] for method, row in rows.items() if "audit" in row}
    columns = {r["name"]: r["title"] for audit in audits.values() for r in audit["results"]}
    body = []
    for method, audit in audits.items():
        own = {r["name"]: r["depth"].values() for r in audit["results"]}
        cells = ([f"{d['value']:.2f}" if d["resolved"] else "—" for d in own.get(key, ())] for key in columns)
        body.append([method, audit["verdict"]["finding"], *(" / ".join(values) or "—" for values in cells)])
    return tabulate(body, headers=["depth", "verdict", *columns.values()], tablefmt=style)


def tables(rows: Rows, style: str = "simple") -> str:
    """Format `table` and, if methods were audited, `depth_table`."""
    audited = any("audit" in row for row in rows.values())
    return "\n\n".join([table(rows, style), *([depth_table(rows, style)] if audited else [])])


def _write(folder: pathlib.Path, config: Config, rows: Rows, alphas: Sequence[float]) -> None:
    """Write comparison.json, comparison.md and, for an ablation, alphas.png."""
    report = {"rows": rows, "config": config.describe()}
    atomic_write(folder / "comparison.json", json.dumps(report, indent=2) + "\n")
    atomic_write(folder / "comparison.md", tables(rows, "github") + "\n")
    if alphas:
        own = config.unlearn.alpha
        names = {a: "encoder" if a == own else f"encoder, alpha {a:g}" for a in sorted({*alphas, own})}
        kept = {f"α = {a:g}": rows[name] for a, name in names.items() if "failed" not in rows[name]}
        plots.save_tradeoff(folder / "alphas.png", {"original": rows["original"], **kept})
