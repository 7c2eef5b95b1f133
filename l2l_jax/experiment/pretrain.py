"""Models trained from nothing: the model to unlearn, and retrained models, the gold standard of forgetting.

What a retrained model, trained without the forget set, reconstructs of forget images it owes to what they
share with the others. To be a fair comparison it must reconstruct retain images about as well as the
original.
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
# Sources that may hold what a shipped model knows, by the source on its card
SHIPPED_SOURCES = {"digits": ("digits",), "fashion": ("fashion", "fashion_mnist", "idx", "folder")}
# Greatest ratio of a fair retrained model's masked MSE on retain validation images to the original's
FAIR_RATIO = 1.1
# Lengths of retraining, in lengths of the original's training: the next one if the one before does not give a
# fair model. Fewer images of fewer kinds take longer to reach the same error.
LENGTHS = (1.2, 1.6, 2.4)


def original_params(config: Config, folders: Workdir, source: Source, hooks: Sequence[Hook] = ()) -> Params:
    """Return the model to unlearn: `config.pretrained`, the one in the workdir, or one pretrained now."""
    if config.pretrained:
        with barrier():
            _check_shipped(config)
            return load_pretrained(shipped.resolved(config.pretrained), config.family, config.model)
    folders.check_inputs(lambda: identify_images(train=source))
    params = folders.load("original", config.model.shapes())
    if params is None:
        params = pretrain(config, folders.pretrain, source, hooks=hooks)
        card = model_card(config, "pretrained from nothing") | folders.facts("original")
        save_model(folders.pretrained, params, card)
    return params


def _check_shipped(config: Config) -> None:
    """Raise a UserError for a shipped model that knows nothing of the images."""
    name, source = config.pretrained, config.data.source
    if name not in shipped.names():
        return
    known = SHIPPED_SOURCES[shipped.card(name)["data"]["source"]]
    if source not in known:
        raise UserError(
            f"config.model.pretrained is {name!r}, a model of {' or '.join(known)} images, but "
            f"config.data.source is {source!r}: name a model of your own, or pretrain one with "
            "--config.model.pretrained=''."
        )


def pretrain(
    config: Config, folder: pathlib.Path, source: Source, title: str = "pretrain", hooks: Sequence[Hook] = ()
) -> Params:
    """Train a model from nothing on the images of `source`, in the phases of `config.pretrain`.

    `folder` keeps a folder for each phase; `title` begins their names in messages.
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

    `length` is that of its training in lengths of the original's, `ratio` that of its masked MSE on retain
    validation images to the original's.
    """

    params: Params
    length: float  # of its training, in lengths of the original's
    ratio: float  # of its masked MSE on retain validation images to the original's


def retrain(
    config: Config,
    original: Params,
    folder: pathlib.Path,
    lengths: Sequence[float] = LENGTHS,
    source: Source | None = None,
) -> Retrained:
    """Train a config's model on its retain images alone, until it reconstructs them as the original does.

    The validation images decide which of the lengths suffices. `source` are training images of all classes,
    by default those of `config.data`; real retain images are used, also where unlearning has others.

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
