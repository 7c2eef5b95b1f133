"""Original model, images and audit shared by all models of a comparison."""

import json
import pathlib
from typing import Any

from l2l_jax.audit import knowledge
from l2l_jax.audit.run import Audit
from l2l_jax.config import Config
from l2l_jax.evals.evaluator import Evaluation
from l2l_jax.experiment import unlearn as unlearning
from l2l_jax.experiment.gold_standard import check_gold_standard, gold_standard
from l2l_jax.experiment.phase import training_sets
from l2l_jax.experiment.pretrain import original_params
from l2l_jax.experiment.workdir import Workdir
from l2l_jax.methods import METHODS
from l2l_jax.models.base import Params
from l2l_jax.utils.multihost import barrier


class Setup:
    """Shared inputs of a comparison: evaluation, images, folder of audits, original model."""

    original: Params  # set by `start`

    def __init__(self, config: Config, workdir: pathlib.Path, audits: pathlib.Path):
        self._config, self._workdir, self.audits = config, Workdir(workdir, config), audits
        if config.audit.enabled:
            check_gold_standard(config, audits)
        with barrier():
            self.evaluation = Evaluation(config, self._workdir.evaluation)
            self.sets = training_sets(config, self.evaluation.train)
        self.pretrained = config.pretrained or str(self._workdir.pretrained)

    def start(self) -> None:
        """Load or train the original model and, for an audit, the retrained models."""
        config = self._config
        self.original = original_params(config, self._workdir, self.evaluation.train)
        if config.audit.enabled:
            standard = gold_standard(config, self.original, self.audits)
            self._auditor = Audit(config, self.evaluation, self.sets, self.audits)
            self._auditor.compare_with(self.original, standard)

    def inputs(self) -> dict[str, Any]:
        """Return values that identify the images and the original model; call it after `start`."""
        return unlearning.identify_inputs(self._config, self.original, self.sets)

    def audit(self, name: str, params: Params) -> dict[str, Any] | None:
        """Audit a model and return its report, or None if audits are disabled."""
        return self._auditor.audit(name, params) if self._config.audit.enabled else None


def stamp(config: Config, *, audited: bool = False) -> dict[str, Any]:
    """Return the config fields that affect the result of a model, without those that only affect speed."""
    settings = json.loads(json.dumps(config.describe()))
    for section in ("mesh", "parallel", "filter", *(() if audited else ("audit",))):
        del settings[section]
    if audited:
        settings["knowledge"] = knowledge.VERSION
    return settings


def fields_of(method: str) -> dict[str, Any]:
    """Return the fields of `config.unlearn` that select a method, without banks if it does not use them."""
    return {"method": method} | ({} if METHODS[method].takes_noise else {"token_bank": 0, "noise_bank": 0})


def incompatible(config: Config) -> str:
    """Return the reason why a method does not support the other settings of its config, or ""."""
    try:
        config.unlearn.objective(config.model)
    except ValueError as error:
        return str(error)
    return ""
