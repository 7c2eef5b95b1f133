"""Every method from the same pretrained model, and the paper's method with proxies and other weights.

What an earlier call finished is not computed anew: every row keeps its figures, models and pictures.
"""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from l2l_jax.audit.run import Audit
from l2l_jax.compare import methods_report
from l2l_jax.config import Config
from l2l_jax.data import splits
from l2l_jax.errors import Diverged
from l2l_jax.evals.evaluator import Evaluation
from l2l_jax.experiment import batches
from l2l_jax.experiment import unlearn as unlearning
from l2l_jax.experiment.gold_standard import check_gold_standard, gold_standard
from l2l_jax.experiment.pretrain import original_params
from l2l_jax.experiment.workdir import Workdir, identify_images
from l2l_jax.methods import METHODS
from l2l_jax.models.base import Params
from l2l_jax.utils.io import ResultCache
from l2l_jax.utils.multihost import barrier, from_primary, is_primary, on_primary

logger = logging.getLogger(__name__)


def compare(
    config: Config, workdir: pathlib.Path, alphas: Sequence[float] = (), proxy: Sequence[str] = (),
    generated: bool = False,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Unlearn with every method from one pretrained model, evaluate, and write `workdir/comparison`.

    Args:
      config: The experiment; its method, alpha and proxies make the first row after the
        original model.
      workdir: Folder of the run; `config`'s own pretrained model in it is used or made.
      alphas: Further weights of the forget term for the paper's method.
      proxy: Classes of the proxy row.
      generated: Whether there is a row for retain images that the original model makes from noise.

    Returns:
      By row: `{"retain": figures, "forget": figures}`, with "audit" where `config.audit` asks for one, or
      `{"failed": reason}` for a method that diverged. Methods that do not go together with the recipe, such
      as "undo" with an adapter, are left out with a warning.

    Raises:
      UserError: An error the user can fix.
      Interrupted: The run was asked to stop; its state is saved.
    """
    folders = Workdir(workdir, config)
    if config.audit.enabled:
        check_gold_standard(config, workdir / "comparison" / "audit")
    with barrier():
        evaluation = Evaluation(config, folders.evaluation)
        sets = batches.training_sets(config, evaluation.train)
        every_other = splits.retained_names(config.data, evaluation.class_names)[::2]
        stand_ins = proxy or config.data.proxy or every_other
        to_run = dict(variants(config, str(folders.pretrained), alphas, tuple(stand_ins), generated))
        for variant in to_run.values():  # a mistake in the proxies is found before anything is trained
            if variant.data != config.data:
                splits.training_sets(variant.data, evaluation.train, config.model.image_size)
    original = original_params(config, folders, evaluation.train)
    tests = identify_images(**{name: images.source for name, images in evaluation.tests.items()})
    key = {"inputs": unlearning.identify_inputs(config, original, sets), "tests": tests}
    cache = ResultCache(workdir / "comparison" / "rows", key)
    rows = {"original": _evaluated(cache, "original", config, evaluation, lambda: original)}
    auditor = None
    if config.audit.enabled:
        folder = workdir / "comparison" / "audit"
        standard = gold_standard(config, original, folder)
        auditor = Audit(config, evaluation, sets, original, standard, folder)
    for name, variant in to_run.items():
        if reason := incompatible(variant):
            logger.warning("%s is left out: %s", name, reason)
            continue
        folder = workdir / "comparison" / _folder(name)

        def unlearned(variant=variant, folder=folder):
            with barrier():
                sets = batches.training_sets(variant, evaluation.train)
            return unlearning.unlearned_params(variant, Workdir(folder, variant), original, sets)

        rows[name] = _evaluated(cache, name, variant, evaluation, unlearned)
        if auditor is not None and "failed" not in rows[name]:
            rows[name]["audit"] = auditor.audit(_folder(name), unlearned())
    shown = {name: row.pop("shown", None) for name, row in rows.items()}
    on_primary(lambda: methods_report.write(workdir / "comparison", config, evaluation, rows, shown, alphas))
    return rows


def fields_of(method: str) -> dict[str, Any]:
    """Return the fields of `config.unlearn` that choose a method: one that uses no banks has none."""
    return {"method": method} | ({} if METHODS[method].takes_noise else {"token_bank": 0, "noise_bank": 0})


def incompatible(config: Config) -> str:
    """Return why a method does not support the other settings of its config, or "" if it does."""
    try:
        config.unlearn.objective(config.model)
    except ValueError as error:
        return str(error)
    return ""


def variants(
    config: Config,
    pretrained: str,
    alphas: Sequence[float],
    stand_ins: Sequence[Any],
    generated: bool = False,
) -> Iterator[tuple[str, Config]]:
    """Yield name and config of the rows after the original.

    Args:
      config: The experiment.
      pretrained: The original model, where `config` does not name one.
      alphas: Further weights of the forget term for the paper's method.
      stand_ins: Classes of the proxy row.
      generated: Whether there is a row for generated retain images.

    An ablation of the weight is one of fixed weights: with `alphas` no row has a retain budget.
    """
    if alphas:
        config = dataclasses.replace(config, unlearn=dataclasses.replace(config.unlearn, retain_budget=None))

    def variant(proxies=None, **unlearn):
        return dataclasses.replace(
            config,
            pretrained=config.pretrained or pretrained,
            data=dataclasses.replace(config.data, **(proxies or {"proxy": ()})),
            unlearn=dataclasses.replace(config.unlearn, **unlearn),
        )

    for method in METHODS:
        yield method, variant(**fields_of(method))
    replaced = {"proxy": tuple(stand_ins), "retain_ratio": 1.0}
    yield "encoder, proxy retain", variant(replaced, method="encoder")
    if generated:
        yield (
            "encoder, generated retain",
            variant({"proxy": (), "retain_images": "generated"}, method="encoder"),
        )
    for alpha in alphas:
        if alpha != config.unlearn.alpha:
            yield f"encoder, alpha {alpha:g}", variant(method="encoder", alpha=alpha)


def _evaluated(
    cache: ResultCache, name: str, config: Config, evaluation: Evaluation, params: Callable[[], Params]
) -> dict[str, Any]:
    """Return the metrics of a row and, in the primary process, the reconstructions to show, or read them."""
    settings = json.loads(json.dumps(config.describe()))
    for where in ("mesh", "parallel", "audit"):  # they change none of these metrics
        del settings[where]
    entry = _folder(name)
    row = from_primary(lambda: cache.get(entry, stamp=settings))
    if row is None:
        try:
            result = evaluation.evaluate(params(), name)
            row, shown = result.metrics, result.shown
        except Diverged as error:
            row, shown = {"failed": str(error)}, {}

        def keep():
            cache.put(f"{entry}-shown", dict(shown))
            cache.put(entry, row, stamp=settings)

        on_primary(keep)
    return {**row, "shown": (cache.get(f"{entry}-shown") or None) if is_primary() else None}


def _folder(name: str) -> str:
    return name.replace(", ", "_").replace(" ", "_")
