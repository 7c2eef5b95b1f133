"""The audit's gold standard: models retrained without the forget images, either loaded or trained."""

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from l2l_jax import shipped
from l2l_jax.audit.run import Standard
from l2l_jax.config import Config
from l2l_jax.data.records import SplitName
from l2l_jax.data.sources import open_source
from l2l_jax.data.splits import evaluation_sets, validation_sets
from l2l_jax.errors import UserError
from l2l_jax.evals.inpaint import masked_errors
from l2l_jax.evals.intervals import Interval, bootstrap
from l2l_jax.experiment.pretrain import FAIR_RATIO, images_without_forget, model_card, retrain
from l2l_jax.experiment.workdir import Workdir, identify_images
from l2l_jax.models.base import Params
from l2l_jax.utils.multihost import barrier
from l2l_jax.weights.loading import load_pretrained
from l2l_jax.weights.saved_models import read_card, save_model

logger = logging.getLogger(__name__)
# Value of `config.audit.retrained` for the retrained models that belong to the shipped original model
SHIPPED = "shipped"
TRAIN = "train"  # value of `config.audit.retrained` for a model trained in the workdir


def gold_standard(
    config: Config, original: Params, folder: pathlib.Path, *, redo: bool | None = None
) -> Standard | None:
    """Return the retrained models that `config.audit.retrained` names, or None if there are none.

    A model trained in the run is stored in `folder`; for `redo` see `Workdir`.

    Raises:
      UserError: A model is missing, cannot be read or does not match the audited model.
    """
    models: dict[str, Params] = {}
    origins, given = [], retrained_names(config)
    if not given:
        return None
    for number, name in enumerate(given, 1):
        key = "retrained" if number == 1 else f"retrained_{number}"
        if name == TRAIN:
            models[key], name = _trained(config, original, folder, redo)
        else:
            with barrier():
                _check(config, name)
                try:
                    models[key] = load_pretrained(shipped.resolved(name), config.family, config.model)
                except UserError as error:
                    reason = f"does not match the audited model: {error}"
                    raise UserError(f"config.audit.retrained={name} {reason}") from error
        origins.append(name)
    ratio, images = _retain_ratio(config, original, models.values())
    seeds = shipped.card(given[0]).get("seeds") if len(given) == 1 and given[0] in shipped.names() else None
    fair = ratio.value <= FAIR_RATIO
    if not fair:
        message = "A retrained model reconstructs retain images worse than the original, at %.2f times its "
        message += "masked MSE (at most %g is fair): comparisons with it are unreliable."
        logger.warning(message, ratio.value, FAIR_RATIO)
    facts = {"origin": ", ".join(origins), "count": len(models), "ratio": list(ratio), "images": images}
    return Standard(models, facts | {"fair": fair, "seeds": seeds})


def check_gold_standard(config: Config, folder: pathlib.Path, *, redo: bool | None = None) -> None:
    """Check `config.audit.retrained` before any work, without reading weights; warn if there is no model.

    Raises:
      UserError: A named model does not exist or was trained for other images, or a model to train in the run
        cannot be trained or was trained with other settings.
    """
    given = retrained_names(config)
    with barrier():
        for name in given:
            _check(config, name)
    if TRAIN in given:
        _retraining(config, folder, redo).close()
    if not given:
        logger.warning(
            "The audit has no retrained model to compare with and will give no verdict. Name a model that "
            "was trained without the forget images with --config.audit.retrained=FOLDER, or train one in the "
            "workdir with --config.audit.retrained=train."
        )


def retrained_names(config: Config) -> tuple[str, ...]:
    """Return the models named by `config.audit.retrained`; shipped models only if they match the images."""
    names: list[str] = []
    retrained = config.pretrained + shipped.RETRAINED
    for given in config.audit.retrained:
        if given != SHIPPED:
            names.append(given)
        elif retrained in shipped.names() and _other_images(config, shipped.card(retrained)) is None:
            names.append(retrained)
    return tuple(names)


def _check(config: Config, given: str) -> None:
    if given == TRAIN:
        open_source(config.data, "validation", config.model.image_size)
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


def _other_images(config: Config, facts: Mapping[str, Any]) -> str | None:
    """Return the field of `config.data` that differs from the training data of a retrained model, if any."""

    def names(value: Any) -> set[str]:
        return set(map(str, value)) if isinstance(value, list | tuple) else {str(value)}

    stored, expected = facts.get("data", {}), config.describe("data")["data"]
    fields = [field for field in ("source", "forget") if field in stored]
    differing = (field for field in fields if names(stored[field]) != names(expected[field]))
    return next(differing, None)


def _retraining(config: Config, folder: pathlib.Path, redo: bool | None) -> Workdir:
    """Return the workdir of a retrained model, which is pretrained by the config on retain images only."""
    return Workdir(folder / "retraining", dataclasses.replace(config, pretrained=""), redo=redo)


def _trained(config: Config, original: Params, folder: pathlib.Path, redo: bool | None) -> tuple[Params, str]:
    """Return the model retrained in the workdir, and its path; train it if it does not exist yet."""
    with contextlib.closing(_retraining(config, folder, redo)) as folders:
        folders.check_inputs(lambda: identify_images(train=images_without_forget(config)))
        params = folders.load("original", original)
        if params is None:
            params = retrain(config, original, folders.pretrain).params
            metadata = model_card(config, "trained without the images to forget") | folders.facts("original")
            save_model(folders.pretrained, params, metadata)
        return params, str(folders.pretrained)


def _retain_ratio(config: Config, original: Params, others: Iterable[Params]) -> tuple[Interval, SplitName]:
    """Return the largest retain MSE of other models relative to the original model, and the split used."""
    split_name: SplitName = "validation" if config.data.validation_fraction else "test"
    source = open_source(config.data, split_name, config.model.image_size)
    choose = validation_sets if split_name == "validation" else evaluation_sets
    images = choose(config.data, source).retain
    before = masked_errors(config, original, images)

    def ratio(params: Params) -> Interval:
        after = masked_errors(config, params, images)
        return bootstrap(lambda i: after[i].mean(-1) / before[i].mean(-1), len(before))

    return max(map(ratio, others), key=lambda interval: interval.value), split_name
