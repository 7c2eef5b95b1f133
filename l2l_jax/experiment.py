"""An experiment from start to end: model → original weights → unlearn → restore → measure → report."""

import logging
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax

from l2l_jax import shipped
from l2l_jax.collectives import agreement, from_writer
from l2l_jax.config import Config
from l2l_jax.data import splits
from l2l_jax.data.pipeline import TrainingBatches, training_batches
from l2l_jax.data.records import Source
from l2l_jax.data.transforms import Transform
from l2l_jax.errors import UserError
from l2l_jax.evaluation.evaluate import Evaluation
from l2l_jax.evaluation.report import write_report
from l2l_jax.models.base import Params
from l2l_jax.objectives.methods import make_task
from l2l_jax.objectives.task import pretraining_task
from l2l_jax.training import sharding
from l2l_jax.training.loop import train
from l2l_jax.training.optimizer import TrainingConfig
from l2l_jax.weights.store import load_params, save_model
from l2l_jax.weights.transfer import load_pretrained, original_weights
from l2l_jax.workdir import Workdir

logger = logging.getLogger(__name__)


def run(config: Config, workdir: pathlib.Path) -> dict[str, Any]:
    """Run or continue an experiment.

    Args:
      config: what to do, from `l2l_jax.config.parse_config`.
      workdir: folder of the run. Work that lies there finished is not done again.

    Returns:
      The content of `workdir/report/metrics.json`.

    Raises:
      UserError: something the user can mend; the message says how.
      Interrupted: the run was asked to stop, and has saved its state.
    """
    clock = _Clock()
    folders = Workdir(workdir, config)
    with agreement():
        evaluation = Evaluation(config, folders.evaluation)
        sets = training_sets(config, evaluation.train)
    original = original_params(config, folders, evaluation.train)
    clock.lap("pretrain")
    unlearned = unlearned_params(config, folders, original, sets)
    clock.lap("unlearn")
    results = {
        "original": evaluation.evaluate(original, "original"),
        "unlearned": evaluation.evaluate(unlearned, "unlearned"),
    }
    clock.lap("evaluate")
    return from_writer(lambda: write_report(folders, config, evaluation, results, clock.seconds))


def training_sets(config: Config, source: Source) -> splits.Split:
    """The training images to retain, or their proxies, and to forget."""
    sets = splits.training_sets(config.data, source, config.model.image_size)
    kind = "proxies" if config.data.proxy else "to retain"
    logger.info("Training images: %d %s, %d to forget", len(sets.retain), kind, len(sets.forget))
    return sets


def original_params(config: Config, folders: Workdir, source: Source) -> Params:
    """The model to unlearn: `config.pretrained`, or the one in the workdir, or pretrained now."""
    model = config.model
    if config.pretrained:
        with agreement():
            _check_shipped(config)
            return load_pretrained(shipped.resolved(config.pretrained), config.family, model)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    if from_writer(folders.pretrained.exists):
        logger.info("Using the pretrained model in %s", folders.pretrained)
        with agreement():
            return load_params(folders.pretrained, shapes)
    params = pretrain(config, folders.pretrain, source)
    save_model(folders.pretrained, params, _card(config, "pretrained from nothing"))
    return params


def _check_shipped(config: Config) -> None:
    """Raise a UserError for a shipped model that knows nothing of the images."""
    name, source = config.pretrained, config.data.source
    if name in shipped.names() and source != "digits":
        raise UserError(
            f"config.model.pretrained is {name!r}, a model of handwritten digits, but config.data.source is "
            f"{source!r}: name a model of your own, or pretrain one with --config.model.pretrained=''."
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
        params = train(
            f"pretrain {stage.name}",
            pretraining_task(stage, tuple(params)),
            params,
            _batches(config, how, {"train": source}, folder / stage.name),
            how,
            folder / stage.name,
            seed=_stage_seed(config.seed, index),
            mesh=sharding.make_mesh(config=config.mesh),
            parallel=config.parallel,
        )
    return params


def unlearned_params(config: Config, folders: Workdir, original: Params, sets: splits.Split) -> Params:
    """The original model after unlearning; taken from the workdir if it is finished there."""
    if from_writer(folders.unlearned.exists):
        logger.info("Using the unlearned model in %s", folders.unlearned)
        with agreement():
            return load_params(folders.unlearned, original)
    how = config.unlearn
    source = shipped.resolved(config.pretrained) if config.pretrained else folders.pretrained
    facts = {"original_weights": from_writer(lambda: original_weights(source))}
    params = train(
        "unlearn",
        make_task(how.method, config.model, **how.options),
        original,
        _batches(config, how, sets._asdict(), folders.unlearn),
        how,
        folders.unlearn,
        seed=_stage_seed(config.seed, 1000),
        mesh=sharding.make_mesh(config=config.mesh),
        parallel=config.parallel,
        alpha=how.alpha,
    )
    save_model(folders.unlearned, params, _card(config, f"unlearned by the method {how.method}") | facts)
    return params


def _batches(
    config: Config, training: TrainingConfig, sets: Mapping[str, Source], folder: pathlib.Path
) -> TrainingBatches:
    """Batches of a stage; its bad images are listed in `folder`."""
    data, size = config.data, config.model.image_size
    if training.batch_size % jax.process_count():
        error = UserError(
            f"batch_size is {training.batch_size}, which {jax.process_count()} processes do not divide: "
            "choose a multiple of the number of devices."
        )
        error.known_to_all = True
        raise error
    how = {"retain": data.proxy_transform} if data.proxy else {}
    return training_batches(
        sets, training.batch_size, value_range=config.model.value_range, seed=config.seed,
        transforms={of: Transform(how.get(of, data), size, training=True) for of in sets},
        bad_folder=folder, max_bad_fraction=data.max_bad_fraction, workers=data.workers,
        process_index=jax.process_index(), process_count=jax.process_count(),
    )  # fmt: skip


def _stage_seed(seed: int, index: int) -> int:
    """Different seeds for the stages of a run, and for neighbouring run seeds."""
    return (seed * 2003 + index) % 2**31


def _card(config: Config, origin: str) -> dict[str, Any]:
    return {**config.describe("family", "model", "data", "seed"), "origin": origin}


class _Clock:
    """Seconds spent in the phases of a run."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = round(now - self._last, 2)
        self._last = now
