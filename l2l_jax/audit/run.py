"""The audit of an unlearned model: the same attacks on it, on the original, and on one that never saw."""

import json
import logging
import pathlib
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from l2l_jax import shipped
from l2l_jax.audit.conclusions import conclude
from l2l_jax.audit.examination import Examiner, Findings
from l2l_jax.config import Config
from l2l_jax.data.sources import open_source
from l2l_jax.data.splits import Split, evaluation_sets, validation_sets
from l2l_jax.errors import UserError
from l2l_jax.evals.evaluator import Evaluation
from l2l_jax.evals.inpaint import masked_errors
from l2l_jax.evals.intervals import Interval, bootstrap
from l2l_jax.experiment.pretrain import model_card
from l2l_jax.experiment.retrain import FAIR_RATIO, retrain
from l2l_jax.models.base import Params
from l2l_jax.utils.multihost import barrier, from_primary, on_primary
from l2l_jax.weights.loading import load_pretrained
from l2l_jax.weights.saved_models import load_params, read_card, save_model

logger = logging.getLogger(__name__)

SHIPPED = "shipped"
"""What `config.audit.retrained` says for the shipped twin of the shipped model that is unlearned, where it
was trained without the same classes, and for none elsewhere."""

TRAIN = "train"
"""What `config.audit.retrained` says for a yardstick that is trained in the workdir."""


class Yardstick(NamedTuple):
    """The model that never saw the forget images.

    Attributes:
      params: its parameters.
      facts: JSON-able: "origin", "ratio", "images", "fair", "seeds".
    """

    params: Params
    facts: dict[str, Any]


class Audit:
    """Audits of unlearned models that come from one original; what they share is done once.

    Args:
      config: the experiment.
      evaluation: its test images.
      training: the images that unlearning is given.
      original: the original model.
      folder: of all audits of this original.
    """

    def __init__(
        self, config: Config, evaluation: Evaluation, training: Split, original: Params, folder: pathlib.Path
    ):
        self._config, self._folder, self._original = config, folder, original
        self._examiner = Examiner(config, evaluation, training, folder)
        self._yardstick = yardstick(config, original, folder)
        self._references: dict[str, Findings] = {}

    @property
    def yardstick(self) -> dict[str, Params]:
        """The model that never saw the forget images as {"retrained": parameters}; empty without one."""
        return {} if self._yardstick is None else {"retrained": self._yardstick.params}

    def audit(self, name: str, params: Params) -> dict[str, Any]:
        """The audit of an unlearned model, see `conclusions.conclude`; written to `<folder>/<name>.json`.

        Args:
          name: of the model and its folder.
          params: the model; it is not changed.
        """
        start = time.monotonic()
        models = {name: params}
        if not self._references:  # now, beside the first unlearned model
            models |= {"original": self._original, **self.yardstick}
        findings = self._examiner.examine(models, show=name)
        found = findings.pop(name)
        self._references |= findings
        findings = {"unlearned": found, **self._references}
        facts = None if self._yardstick is None else self._yardstick.facts
        report = from_primary(lambda: conclude(findings, facts))
        report["seconds"] = round(time.monotonic() - start, 2)
        on_primary(lambda: (self._folder / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n"))
        return report

    def shown(self, name: str, attack: str | None) -> Mapping[str, np.ndarray] | None:
        """Restorations after an attack that trains of the images that pictures show, by set."""
        return None if attack is None else self._examiner.shown(name, attack)


def yardstick(config: Config, original: Params, folder: pathlib.Path) -> Yardstick | None:
    """The retrained model that `config.audit.retrained` names, and whether it is a fair one.

    Raises:
      UserError: it is not there, cannot be read or fits another model.
    """
    given = _named(config)
    if not given:
        logger.info("Audit: no retrained model to compare with, see config.audit.retrained")
        return None
    if given == TRAIN:
        params, origin = _trained(config, original, folder / "retrained_model")
    else:
        with barrier():
            params, origin = _loaded(config, given)
    ratio, images = _retain_ratio(config, original, params)
    facts = {
        "origin": origin, "ratio": list(ratio), "images": images, "fair": ratio.value <= FAIR_RATIO,
        "seeds": shipped.card(given).get("seeds") if given in shipped.names() else None,
    }  # fmt: skip
    if not facts["fair"]:
        logger.warning(
            "The retrained model restores retain images worse than the original, %.2f times its hole error "
            "(fair is up to %g): depths measured with it are not to be trusted.", ratio.value, FAIR_RATIO,
        )  # fmt: skip
    return Yardstick(params, facts)


def check_yardstick(config: Config) -> None:
    """Raise a UserError if `config.audit.retrained` names nothing, or a model that never saw other images.

    What can be known without reading the weights, so that nobody waits for it.
    """
    given = _named(config)
    if given in ("", TRAIN):
        return
    path = shipped.resolved(given)
    if not path.exists():
        raise UserError(
            f"config.audit.retrained={given} does not exist; name a folder of a saved model, the "
            f"name of a shipped one ({', '.join(shipped.names())}), 'train', or '' for none."
        )
    facts = shipped.card(given) if given in shipped.names() else read_card(path) if path.is_dir() else {}
    other = _other_images(config, facts)
    if other is not None:
        raise UserError(
            f"config.audit.retrained={given} was trained for {other}={facts['data'][other]}, but "
            f"config.data.{other} is {config.describe('data')['data'][other]}: name another model, 'train', "
            "or '' for none."
        )


def _named(config: Config) -> str:
    """`config.audit.retrained`, with the name of the shipped twin, or "", in place of "shipped"."""
    if config.audit.retrained != SHIPPED:
        return config.audit.retrained
    twin = config.pretrained + shipped.RETRAINED
    return twin if twin in shipped.names() and _other_images(config, shipped.card(twin)) is None else ""


def _other_images(config: Config, facts: Mapping[str, Any]) -> str | None:
    """The field of `config.data` by which a model with these facts never saw other images, if any."""
    found, wanted = facts.get("data", {}), config.describe("data")["data"]
    for name in ("source", "forget"):
        if name in found and _names(found[name]) != _names(wanted[name]):
            return name
    return None


def _names(value: Any) -> set[str]:
    return set(map(str, value)) if isinstance(value, list | tuple) else {str(value)}


def _loaded(config: Config, given: str) -> tuple[Params, str]:
    check_yardstick(config)
    try:
        return load_pretrained(shipped.resolved(given), config.family, config.model), given
    except UserError as error:
        raise UserError(f"config.audit.retrained={given} does not fit the audited model: {error}") from error


def _trained(config: Config, original: Params, folder: pathlib.Path) -> tuple[Params, str]:
    """The yardstick trained in the workdir: once, then read from there."""
    if from_primary(folder.exists):
        with barrier():
            params = load_params(folder, original)
    else:
        params = retrain(config, original, folder.with_name("retraining")).params
        save_model(folder, params, model_card(config, "trained without the images to forget"))
    return params, str(folder)


def _retain_ratio(config: Config, original: Params, retrained: Params) -> tuple[Interval, str]:
    """Hole error on retain images, retrained over original, and on which images it was measured."""
    kind = "validation" if config.data.validation_fraction else "test"
    source = open_source(config.data, kind, config.model.image_size)
    choose = validation_sets if kind == "validation" else evaluation_sets
    images = choose(config.data, source).retain
    before, after = (masked_errors(config, params, images) for params in (original, retrained))
    return bootstrap(lambda i: after[i].mean(-1) / before[i].mean(-1), len(before)), kind
