"""The model to unlearn: a given one, or one that is pretrained now."""

import logging
import pathlib
from typing import Any

import jax

from l2l_jax import shipped
from l2l_jax.config import Config
from l2l_jax.data.records import Source
from l2l_jax.errors import UserError
from l2l_jax.experiment.batches import phase_batches, phase_seed
from l2l_jax.experiment.workdir import Workdir, identify_images
from l2l_jax.methods.base import pretraining_objective
from l2l_jax.models.base import Params
from l2l_jax.train import sharding
from l2l_jax.train.loop import Trainer, TrainRun
from l2l_jax.utils.multihost import barrier
from l2l_jax.weights.loading import load_pretrained
from l2l_jax.weights.saved_models import save_model

logger = logging.getLogger(__name__)

SHIPPED_SOURCES = {"digits": ("digits",), "fashion": ("fashion", "fashion_mnist", "idx", "folder")}
"""Sources that may hold what a shipped model knows, by the source on its card."""


def original_params(config: Config, folders: Workdir, source: Source) -> Params:
    """Return the model to unlearn: `config.pretrained`, the one in the workdir, or one pretrained now."""
    if config.pretrained:
        with barrier():
            _check_shipped(config)
            return load_pretrained(shipped.resolved(config.pretrained), config.family, config.model)
    folders.check_inputs(identify_images(train=source))
    params = folders.load("original", config.model.shapes())
    if params is None:
        params = pretrain(config, folders.pretrain, source)
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


def pretrain(config: Config, folder: pathlib.Path, source: Source, title: str = "pretrain") -> Params:
    """Train a model from nothing on the images of `source`, in the phases of `config.pretrain`.

    Args:
      config: Model, phases, seed and devices.
      folder: Keeps a folder of checkpoints and metrics for each phase.
      source: Training images.
      title: What is trained, in messages.
    """
    params = jax.device_get(jax.jit(config.model.init)(jax.random.key(config.seed)))
    for index, stage in enumerate(config.model.pretraining_stages()):
        training = config.pretrain[stage.name]
        trainer = Trainer(
            f"{title} {stage.name}",
            pretraining_objective(stage, tuple(params)),
            training,
            seed=phase_seed(config.seed, index),
            mesh=sharding.make_mesh(config=config.mesh),
            parallel=config.parallel,
        )
        batches = phase_batches(config, training, {"train": source}, folder / stage.name)
        params = trainer.train(TrainRun(params, batches, folder / stage.name))
    return params


def model_card(config: Config, origin: str) -> dict[str, Any]:
    """Return the metadata of a saved model: its config, its images and the origin of its weights."""
    return {**config.describe("family", "model", "data", "seed"), "origin": origin}
