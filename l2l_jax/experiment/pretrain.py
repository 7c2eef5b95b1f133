"""The model to unlearn: a given one, or one that is pretrained now."""

import logging
import pathlib
from typing import Any

import jax

from l2l_jax import shipped
from l2l_jax.config import Config
from l2l_jax.data.records import Source
from l2l_jax.errors import UserError
from l2l_jax.experiment.batches import stage_batches, stage_seed
from l2l_jax.experiment.workdir import Workdir
from l2l_jax.methods.base import pretraining_task
from l2l_jax.models.base import Params
from l2l_jax.train import sharding
from l2l_jax.train.loop import Trainer, TrainRun
from l2l_jax.utils.multihost import barrier, from_primary
from l2l_jax.weights.saved_models import load_params, save_model
from l2l_jax.weights.transfer import load_pretrained

logger = logging.getLogger(__name__)

SHIPPED_SOURCES = {"digits": ("digits",), "fashion": ("fashion", "fashion_mnist", "idx", "folder")}
"""Sources that may hold what a shipped model knows, by the source on its card."""


def original_params(config: Config, folders: Workdir, source: Source) -> Params:
    """The model to unlearn: `config.pretrained`, or the one in the workdir, or pretrained now."""
    model = config.model
    if config.pretrained:
        with barrier():
            _check_shipped(config)
            return load_pretrained(shipped.resolved(config.pretrained), config.family, model)
    shapes = model.shapes()
    if from_primary(folders.pretrained.exists):
        logger.info("Using the pretrained model in %s", folders.pretrained)
        with barrier():
            return load_params(folders.pretrained, shapes)
    params = pretrain(config, folders.pretrain, source)
    save_model(folders.pretrained, params, model_card(config, "pretrained from nothing"))
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


def pretrain(config: Config, folder: pathlib.Path, source: Source) -> Params:
    """A model trained from nothing on the images of `source`, by the stages of `config.pretrain`.

    Args:
      config: model, stages, seed and devices.
      folder: keeps a folder of checkpoints and scalars for each stage.
      source: training images.
    """
    params = jax.device_get(jax.jit(config.model.init)(jax.random.key(config.seed)))
    for index, stage in enumerate(config.model.pretraining_stages()):
        how = config.pretrain[stage.name]
        trainer = Trainer(
            f"pretrain {stage.name}",
            pretraining_task(stage, tuple(params)),
            how,
            seed=stage_seed(config.seed, index),
            mesh=sharding.make_mesh(config=config.mesh),
            parallel=config.parallel,
        )
        batches = stage_batches(config, how, {"train": source}, folder / stage.name)
        params = trainer.train(TrainRun(params, batches, folder / stage.name))
    return params


def model_card(config: Config, origin: str) -> dict[str, Any]:
    """What a saved model says of itself: its configuration, the images, and where the weights come from."""
    return {**config.describe("family", "model", "data", "seed"), "origin": origin}
