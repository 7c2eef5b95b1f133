"""An experiment from start to end: model → original weights → unlearn → restore → measure → report."""

import contextlib
import pathlib
import time
from typing import Any

from l2l_jax.audit.run import Audit
from l2l_jax.config import Config
from l2l_jax.data.splits import Split
from l2l_jax.errors import UserError
from l2l_jax.evals.encoder_features import EncoderFeatures, embed_images
from l2l_jax.evals.evaluator import Evaluation
from l2l_jax.experiment.batches import training_sets
from l2l_jax.experiment.gold_standard import check_gold_standard, gold_standard
from l2l_jax.experiment.pretrain import original_params
from l2l_jax.experiment.reporting import report_run
from l2l_jax.experiment.unlearn import unlearned_params
from l2l_jax.experiment.workdir import Workdir
from l2l_jax.models.base import Params
from l2l_jax.utils.multihost import barrier, from_primary, is_primary
from l2l_jax.utils.runtime import peak_memory
from l2l_jax.weights.loading import load_pretrained


def run(config: Config, workdir: pathlib.Path, *, redo: bool = False) -> dict[str, Any]:
    """Run or continue an experiment.

    Args:
      config: what to do, from `l2l_jax.config.parse_config`.
      workdir: folder of the run. Work that lies there finished is not done again.
      redo: delete what another config or other images have made there, instead of refusing it.

    Returns:
      The content of `workdir/report/metrics.json`.

    Raises:
      UserError: something the user can mend; the message says how.
      Interrupted: the run was asked to stop, and has saved its state.
    """
    with contextlib.closing(Workdir(workdir, config, redo=redo)) as folders:
        return _run(config, folders)


def _run(config: Config, folders: Workdir) -> dict[str, Any]:
    clock = _Clock()
    with barrier():
        if config.audit.enabled:
            check_gold_standard(config)
        evaluation = Evaluation(config, folders.evaluation)
        sets = training_sets(config, evaluation.train)
    original = _checked_original(config, folders, evaluation, sets)
    clock.lap("pretrain")
    unlearned = unlearned_params(config, folders, original, sets)
    clock.lap("unlearn")
    models = {"original": original, "unlearned": unlearned}
    return _reported(config, folders, evaluation, sets, models, clock)


def audit(config: Config, workdir: pathlib.Path, unlearned: pathlib.Path) -> dict[str, Any]:
    """Audit a model that was unlearned before, and write the report of a run.

    Args:
      config: how it was unlearned, and how it is attacked.
      workdir: where findings and report go; the original model is that of `config.pretrained` or lies here.
      unlearned: folder of the unlearned model; it is not changed.

    Returns:
      The content of `workdir/report/metrics.json`.

    Raises:
      UserError: something the user can mend; the message says how.
      Interrupted: the audit was asked to stop; finished attacks are kept.
    """
    with contextlib.closing(Workdir(workdir, config)) as folders:
        return _audit(config, folders, unlearned)


def _audit(config: Config, folders: Workdir, unlearned: pathlib.Path) -> dict[str, Any]:
    clock = _Clock()
    with barrier():
        evaluation = Evaluation(config, folders.evaluation)
        sets = training_sets(config, evaluation.train)
        if not config.pretrained and not folders.pretrained.exists():
            raise UserError(
                f"There is no original model to compare with: {folders.pretrained} does not exist; name one "
                "with --config.model.pretrained."
            )
        params = load_pretrained(unlearned, config.family, config.model)
    if unlearned == folders.unlearned:
        original = _checked_original(config, folders, evaluation, sets)
    else:
        original = original_params(config, folders, evaluation.train)
    models = {"original": original, "unlearned": params}
    return _reported(config, folders, evaluation, sets, models, clock)


def _checked_original(config: Config, folders: Workdir, evaluation: Evaluation, sets: Split) -> Params:
    """Return the original model; images and model must be those that the workdir's models were made from."""
    train = {} if config.pretrained else {"train": evaluation.train}
    folders.check_images(**train, retain=sets.retain, forget=sets.forget)
    original = original_params(config, folders, evaluation.train)
    folders.check_original(config.model, original)
    return original


def _reported(
    config: Config, folders: Workdir, evaluation: Evaluation, sets: Split, models: dict[str, Params],
    clock: "_Clock",
) -> dict[str, Any]:  # fmt: skip
    """Evaluate the models, audit them if that is asked for, and write the report."""
    auditor = None
    if config.audit.enabled:
        standard = gold_standard(config, models["original"], folders.audit)
        auditor = Audit(config, evaluation, sets, models["original"], standard, folders.audit)
        models |= {} if standard is None else {"retrained": standard.models["retrained"]}
    results = {name: evaluation.evaluate(params, name) for name, params in models.items()}
    tests = {of: evaluation.tests[of] for of in ("retain", "forget")}
    batch_size = config.evaluate.batch_size
    features = embed_images(EncoderFeatures(config.model, batch_size, config.seed), models, tests)
    clock.lap("evaluate")
    audited = None
    if auditor is not None:
        findings = auditor.audit("unlearned", models["unlearned"])
        audited = findings, (auditor.pictures("unlearned", findings) if is_primary() else None)
        clock.lap("audit")
    costs = {"durations_seconds": clock.seconds, "peak_memory_gib_after": clock.memory}
    return from_primary(lambda: report_run(folders, config, evaluation, results, costs, features, audited))


class _Clock:
    """Seconds spent in the phases of a run, and the process's greatest memory in GiB up to their ends."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.memory: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = round(now - self._last, 2)
        self.memory[name] = round(peak_memory(), 3)
        self._last = now
