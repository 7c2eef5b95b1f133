"""Models trained from scratch: the original model, and retrained models, the gold standard of unlearning.

A retrained model is trained without the forget set, so its reconstructions of forget images rely on what they
share with other images. For a fair comparison, it must reconstruct retain images about as well as the
original model.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from l2l_jax import shipped
from l2l_jax.config import Config
from l2l_jax.data import splits
from l2l_jax.data.records import Source
from l2l_jax.data.sources import open_source
from l2l_jax.errors import UserError
from l2l_jax.evals.inpaint import masked_errors
from l2l_jax.experiment.phase import open_phase
from l2l_jax.experiment.workdir import Workdir, identify_images
from l2l_jax.models.base import Params
from l2l_jax.train.hooks import Hook
from l2l_jax.utils.multihost import barrier
from l2l_jax.weights.loading import load_pretrained
from l2l_jax.weights.saved_models import save_model

logger = logging.getLogger(__name__)
# Compatible data sources of a shipped model, by the source in its metadata
SHIPPED_SOURCES = {"digits": ("digits",), "fashion": ("fashion", "fashion_mnist", "idx", "folder")}
# Greatest masked MSE of a fair retrained model on retain validation images, relative to the original model
FAIR_RATIO = 1.1
# Lengths of retraining, relative to the training of the original model. Each is tried if the previous one
# does not give a fair model: with fewer images and classes, it takes longer to reach the same error.
LENGTHS = (1.2, 1.6, 2.4)


def original_params(config: Config, folders: Workdir, source: Source, hooks: Sequence[Hook] = ()) -> Params:
    """Return the model to unlearn: load `config.pretrained` or the model in the workdir, or pretrain one."""
    if config.pretrained:
        with barrier():
            _check_shipped(config)
            return load_pretrained(shipped.resolved(config.pretrained), config.family, config.model)
    folders.check_inputs(lambda: identify_images(train=source))
    params = folders.load("original", config.model.shapes())
    if params is None:
        params = pretrain(config, folders.pretrain, source, hooks=hooks)
        metadata = model_card(config, "pretrained from nothing") | folders.facts("original")
        save_model(folders.pretrained, params, metadata)
    return params


def _check_shipped(config: Config) -> None:
    """Raise a UserError for a shipped model that was trained on other data."""
    name, source = config.pretrained, config.data.source
    if name not in shipped.names():
        return
    sources = SHIPPED_SOURCES[shipped.card(name)["data"]["source"]]
    if source not in sources:
        raise UserError(
            f"config.model.pretrained is {name!r}, a model of {' or '.join(sources)} images, but "
            f"config.data.source is {source!r}: name a model of your own, or pretrain one with "
            "--config.model.pretrained=''."
        )


def pretrain(
    config: Config, folder: pathlib.Path, source: Source, title: str = "pretrain", hooks: Sequence[Hook] = ()
) -> Params:
    """Train a model from scratch on the images of `source`, in the phases of `config.pretrain`.

    `folder` holds a subfolder for each phase; `title` is the prefix of their names in messages.
    """
    params = jax.device_get(jax.jit(config.model.init)(jax.random.key(config.seed)))
    for name in (stage.name for stage in config.model.pretraining_stages()):
        phase = open_phase(config, f"pretrain.{name}")
        params = phase.train(f"{title} {name}", {"train": source}, params, folder / name, hooks=hooks)
    return params


def model_card(config: Config, origin: str) -> dict[str, Any]:
    """Return the metadata of a saved model: its config, its images and the origin of its weights."""
    return {**config.describe("family", "model", "data", "seed"), "origin": origin}


class Retrained(NamedTuple):
    """A model that was trained without the forget set.

    Attributes:
      params: Parameters.
      length: Length of its training, relative to the original model.
      ratio: Masked MSE on retain validation images, relative to the original model.
    """

    params: Params
    length: float
    ratio: float


def retrain(
    config: Config,
    original: Params,
    folder: pathlib.Path,
    lengths: Sequence[float] = LENGTHS,
    source: Source | None = None,
) -> Retrained:
    """Train a config's model on its retain images only, until it reconstructs them like the original model.

    Validation images decide which of the lengths suffices. `source` holds the training images of all classes,
    by default those of `config.data`. Real retain images are used even if unlearning uses others.

    Returns:
      The first fair model, or the best of all lengths.
    """
    size = config.model.image_size
    retained = splits.validation_sets(config.data, open_source(config.data, "validation", size)).retain
    limit = masked_errors(config, original, retained).mean()
    without_forget, tried = images_without_forget(config, source), []
    for length in lengths:
        phases = dict(config.pretrain)
        for name, training in config.pretrain.items():
            phases[name] = dataclasses.replace(training, steps=round(training.steps * length))
        longer = dataclasses.replace(config, pretrain=phases)
        params = pretrain(longer, folder / f"{length:g}", without_forget, title="retrained model,")
        ratio = float(masked_errors(config, params, retained).mean() / limit)
        logger.info("Retrained at %g times the length: %.3f times the original's error", length, ratio)
        tried.append(Retrained(params, length, ratio))
        if ratio <= FAIR_RATIO:
            break
    return min(tried, key=lambda model: model.ratio)


def images_without_forget(config: Config, source: Source | None = None) -> Source:
    """Return the retain images of `source`, or of the training images of `config.data`."""
    size = config.model.image_size
    source = source or splits.open_training(config.data, size)
    return splits.training_sets(dataclasses.replace(config.data, retain_images="real"), source, size).retain
