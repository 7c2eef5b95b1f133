"""The complete pipeline of an experiment: original model → unlearn → audit → evaluate → report."""

import contextlib
import pathlib
import time
from typing import Any

from l2l_jax.audit.run import Audit
from l2l_jax.config import Config
from l2l_jax.errors import UserError
from l2l_jax.evals.encoder_features import EncoderFeatures, embed_images
from l2l_jax.evals.evaluator import Evaluation
from l2l_jax.experiment.gold_standard import check_gold_standard, gold_standard
from l2l_jax.experiment.outlook import Outlook
from l2l_jax.experiment.phase import training_sets
from l2l_jax.experiment.pretrain import original_params
from l2l_jax.experiment.reporting import report_run
from l2l_jax.experiment.unlearn import identify_inputs, unlearned_params
from l2l_jax.experiment.workdir import Workdir
from l2l_jax.models.base import Params
from l2l_jax.utils.multihost import barrier, from_primary
from l2l_jax.utils.runtime import peak_memory
from l2l_jax.weights.loading import load_pretrained


def run(config: Config, workdir: pathlib.Path, *, redo: bool = False) -> dict[str, Any]:
    """Run or resume an experiment.

    Args:
      config: Config of the experiment, from `l2l_jax.config.parse_config`.
      workdir: Folder of the run. Finished work in it is not repeated.
      redo: Delete results of another config or other images in the folder, instead of raising an error.

    Returns:
      The contents of `workdir/report/metrics.json`.

    Raises:
      UserError: An error the user can fix; the message says how.
      Interrupted: The run was asked to stop and has saved its state.
    """
    with contextlib.closing(Workdir(workdir, config, redo=redo)) as folders:
        if config.audit.enabled:
            check_gold_standard(config, folders.audit, redo=redo)
        with barrier():
            images = _Images(config, folders)
            outlook = Outlook(config, folders, images.evaluation, images.auditor)
            outlook.announce()
        clock = _Clock()
        original = original_params(config, folders, images.evaluation.train, [outlook])
        clock.lap("pretrain")
        unlearned = unlearned_params(config, folders, original, images.sets, hooks=[outlook])
        clock.lap("unlearn")
        return images.report({"original": original, "unlearned": unlearned}, clock)


def audit(config: Config, workdir: pathlib.Path, unlearned: pathlib.Path) -> dict[str, Any]:
    """Audit the model in a folder, unlearned with `config`, and write the report of a run; see `run`.

    The original model is `config.pretrained`, or the one in the workdir.
    """
    with contextlib.closing(Workdir(workdir, config)) as folders:
        check_gold_standard(config, folders.audit)
        with barrier():
            images = _Images(config, folders)
            if not config.pretrained and not folders.pretrained.exists():
                raise UserError(
                    f"There is no original model to compare with: {folders.pretrained} does not exist; name "
                    "one with --config.model.pretrained."
                )
            params = load_pretrained(unlearned, config.family, config.model)
        original = original_params(config, folders, images.evaluation.train)
        if unlearned == folders.unlearned:
            folders.check_inputs(lambda: identify_inputs(config, original, images.sets))
        return images.report({"original": original, "unlearned": params}, _Clock())


class _Images:
    """The images of an experiment and their evaluation; `auditor` is None if the audit is disabled."""

    def __init__(self, config: Config, folders: Workdir):
        self._config, self._folders = config, folders
        self.evaluation = Evaluation(config, folders.evaluation)
        self.sets = training_sets(config, self.evaluation.train)
        self.auditor: Audit | None = None
        if config.audit.enabled:
            self.auditor = Audit(config, self.evaluation, self.sets, folders.audit)

    def report(self, models: dict[str, Params], clock: "_Clock") -> dict[str, Any]:
        """Evaluate the models, audit them if enabled, and write the report."""
        config, evaluation, auditor = self._config, self.evaluation, self.auditor
        findings: dict[str, Any] | None = None
        if auditor is not None:
            original = models["original"]
            standard = gold_standard(config, original, self._folders.audit, redo=self._folders.redo)
            clock.lap("retrain")
            auditor.compare_with(original, standard)
            models |= {} if standard is None else {"retrained": standard.models["retrained"]}
        results = {name: evaluation.evaluate(params, name) for name, params in models.items()}
        tests = {name: evaluation.tests[name] for name in ("retain", "forget")}
        embedder = EncoderFeatures(config.model, config.evaluate.batch_size, config.seed)
        features = embed_images(embedder, models, tests)
        clock.lap("evaluate")
        if auditor is not None:
            findings = auditor.audit("unlearned", models["unlearned"])
            clock.lap("audit")
        costs = {"durations_seconds": clock.seconds, "peak_memory_gib_after": clock.memory}

        def write() -> dict[str, Any]:
            attacked = auditor.pictures("unlearned", findings) if auditor and findings else None
            audited = findings, attacked or {}
            return report_run(self._folders, config, evaluation, results, costs, features, audited)

        return from_primary(write)


class _Clock:
    """Seconds spent in each phase of a run, and the peak memory of the process at its end, in GiB."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.memory: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = round(now - self._last, 2)
        self.memory[name] = round(peak_memory(), 3)
        self._last = now
