"""Unlearning: from the original model and the two sets of images to the unlearned model on disk."""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from l2l_jax import shipped
from l2l_jax.config import Config
from l2l_jax.data import splits
from l2l_jax.data.loader import Batches
from l2l_jax.data.records import Source
from l2l_jax.evals.image_set import ImageSet
from l2l_jax.experiment.batches import stage_batches, stage_seed
from l2l_jax.experiment.generate import generate
from l2l_jax.experiment.lineage import budget_reference, first_of_line
from l2l_jax.experiment.pretrain import model_card
from l2l_jax.experiment.validation import Outcome, outcome_of, retain_budget
from l2l_jax.experiment.workdir import Workdir
from l2l_jax.methods.adapters import ADAPTER, Adapter
from l2l_jax.methods.base import Task
from l2l_jax.models.base import Params
from l2l_jax.train import sharding
from l2l_jax.train.loop import Trainer, TrainRun
from l2l_jax.train.metric_writers import read_metrics
from l2l_jax.train.token_cache import TokenCacheConfig, cached_task, open_token_cache
from l2l_jax.train.unlearning_config import UnlearningConfig
from l2l_jax.utils.multihost import barrier, from_primary
from l2l_jax.weights import adapter_files
from l2l_jax.weights.saved_models import fingerprint, load_params, save_model
from l2l_jax.weights.transfer import original_weights

logger = logging.getLogger(__name__)


def unlearned_params(
    config: Config, folders: Workdir, original: Params, sets: splits.Split,
    *, devices: Sequence[jax.Device] | None = None, phases: pathlib.Path | None = None,
) -> Params:  # fmt: skip
    """The original model after unlearning; taken from the workdir if it is finished there.

    Args:
      config: the experiment.
      folders: its workdir.
      original: parameters of the original model.
      sets: training images to retain and to forget.
      devices: to train on; None: all.
      phases: where `run_phases` has worked or is to; None: in the folder of unlearning.
    """
    if from_primary(folders.unlearned.exists):
        logger.info("Using the unlearned model in %s", folders.unlearned)
        with barrier():
            return load_params(folders.unlearned, original)
    how = config.unlearn
    newest = config.pretrained or folders.pretrained
    facts = {
        "original_weights": from_primary(lambda: original_weights(shipped.resolved(str(newest)))),
        "first_original": from_primary(lambda: first_of_line(newest)),
    }
    if config.data.retain_images == "generated":
        sets = sets._replace(retain=generated_images(config, folders, original, sets.retain))
    task = how.objective(config.model)
    first = None
    if how.retain_budget is not None:
        first = budget_reference(config, newest, facts["first_original"])
    if task.phases is not None:
        facts["phases"] = run_phases(
            config, phases or folders.unlearn, original, sets, devices, teacher=first
        )
        logger.info("Losses at the end of the phases: %s", facts["phases"])
        task = task._replace(gradients=task.phases.settle(facts["phases"]))
    budget = None if how.retain_budget is None else retain_budget(config, first)
    params = _unlearn(
        "unlearn", task, config, how, folders.unlearn, original, sets, devices,
        alpha=how.weight, budget=budget, teacher=first,
    )  # fmt: skip
    if budget is not None:
        facts["retain_budget"] = _told(outcome_of(budget), how)
    adapter = params.pop(ADAPTER, None)
    beside = {} if adapter is None else {adapter_files.FILE: _adapter_file(config, adapter, original, facts)}
    card = model_card(config, f"unlearned by the method {how.method}") | facts
    save_model(folders.unlearned, params, card, beside=beside)
    return params


def generated_images(config: Config, folders: Workdir, original: Params, starts: Source) -> Source:
    """What the original model makes of proxies or noise; taken from the workdir if it lies there."""
    images = ImageSet.of(config, starts, "images to generate from", config.data.proxy_transform)
    seed = stage_seed(config.seed, 2000)
    return generate(
        config.model, original, images, folders.generated, batch_size=config.evaluate.batch_size, seed=seed
    )


def _adapter_file(config: Config, adapter: Adapter, original: Params, facts: Mapping[str, Any]) -> bytes:
    """The content of the file that turns the original model into the unlearned one."""
    how = config.unlearn
    card = {
        **config.describe("family", "model"), **facts, "method": how.method, "adapter": how.adapter,
        "adapter_rank": how.adapter_rank, "base": fingerprint(original, config.model.generative_parts),
    }  # fmt: skip
    return adapter_files.adapter_bytes(adapter, card)


def run_phases(
    config: Config, folder: pathlib.Path, original: Params, sets: splits.Split,
    devices: Sequence[jax.Device] | None = None, *, teacher: Params | None = None,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Run or continue what comes before a method's own run.

    Args:
      config, original, sets, devices: see `unlearned_params`.
      folder: keeps a folder for each phase; other runs of the same seed, rate and length may share them.
      teacher: see `l2l_jax.train.loop.TrainRun`.

    Returns:
      The means of each phase's terms over its last tenth of the steps; empty for a method without phases.
    """
    task = config.unlearn.objective(config.model)
    if task.phases is None:
        return {}
    how, ends = dataclasses.replace(config.unlearn, log_every=1), {}
    for name, rule in task.phases.rules.items():
        phase = task._replace(gradients=rule)
        _unlearn(
            f"unlearn {name}", phase, config, how, folder / name, original, sets, devices, teacher=teacher
        )
        ends[name] = from_primary(functools.partial(_terms_at_end, folder / name, how.steps))
    return ends


def _unlearn(
    name: str, task: Task, config: Config, how: UnlearningConfig, folder: pathlib.Path, original: Params,
    sets: splits.Split, devices: Sequence[jax.Device] | None, **more: Any,
) -> Params:  # fmt: skip
    """One run of a task on the training images."""
    on = None if devices is None else list(devices)
    seed, mesh = stage_seed(config.seed, 1000), sharding.make_mesh(devices=on, config=config.mesh)
    pixels = stage_batches(config, how, sets._asdict(), folder)
    batches: Batches = pixels
    if how.banked:
        task = cached_task(task, config.model, how.banked)
        cache = TokenCacheConfig(how.token_bank, how.noise_bank, how.options.noise)
        batches = open_token_cache(
            folder / "bank", cache, config.model, original, pixels, seed=seed, mesh=mesh
        )
    trainer = Trainer(name, task, how, seed=seed, mesh=mesh, parallel=config.parallel)
    return trainer.train(TrainRun(original, batches, folder, **more))


def _told(outcome: Outcome, how: UnlearningConfig) -> dict[str, Any]:
    """What a budget came to, logged and JSON-able."""
    if outcome.met:
        logger.info("Inside the retain budget of %g: %s", outcome.budget, outcome)
    else:
        logger.warning(
            "The retain budget of %g cannot be met with %d steps of the method %s; nearest to it comes %s",
            outcome.budget, how.steps, how.method, outcome,
        )  # fmt: skip
    return outcome.describe()


def _terms_at_end(folder: pathlib.Path, steps: int) -> dict[str, float]:
    """Means of a run's terms over its last tenth of the steps, of which every one is logged."""
    first = steps - max(1, steps // 10)
    rows = [row for row in read_metrics(folder) if row["step"] > first]
    return {term: float(np.mean([row[term] for row in rows])) for term in ("retain", "forget")}
