"""Unlearning: from the original model and the two sets of images to the unlearned model on disk."""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from l2l_jax import shipped
from l2l_jax.config import Config
from l2l_jax.data import splits
from l2l_jax.data.loader import Batches
from l2l_jax.data.records import Source
from l2l_jax.data.sources import open_source
from l2l_jax.evals.image_set import ImageSet
from l2l_jax.experiment.batches import phase_batches, phase_seed
from l2l_jax.experiment.budget import Outcome, budget_reference, first_of_line, outcome_of, retain_budget
from l2l_jax.experiment.generate import generate
from l2l_jax.experiment.pretrain import model_card
from l2l_jax.experiment.workdir import Workdir, identify_images
from l2l_jax.methods.base import Objective
from l2l_jax.models.adapters import ADAPTER, Adapter
from l2l_jax.models.base import Params
from l2l_jax.train import sharding
from l2l_jax.train.budget import RetainBudget
from l2l_jax.train.loop import Trainer, TrainRun
from l2l_jax.train.metric_writers import read_metrics
from l2l_jax.train.token_cache import TokenCacheConfig, cached_objective, open_token_cache
from l2l_jax.train.unlearning_config import UnlearningConfig
from l2l_jax.utils.multihost import barrier, from_primary
from l2l_jax.weights import adapters
from l2l_jax.weights.loading import original_weights
from l2l_jax.weights.saved_models import fingerprint, save_model

logger = logging.getLogger(__name__)


class _Start(NamedTuple):
    """What a run of unlearning starts from, see `unlearned_params` and `TrainRun`."""

    original: Params
    sets: splits.Split
    devices: Sequence[jax.Device] | None = None
    teacher: Params | None = None
    alpha: float = 0.0
    budget: RetainBudget | None = None


def unlearned_params(
    config: Config,
    folders: Workdir,
    original: Params,
    sets: splits.Split,
    *,
    devices: Sequence[jax.Device] | None = None,
    phases: pathlib.Path | None = None,
) -> Params:
    """Return the original model after unlearning, from the workdir if it is finished there.

    Args:
      config: The experiment.
      folders: Its workdir.
      original: Parameters of the original model.
      sets: Training images to retain and to forget.
      devices: Devices to train on; None: all.
      phases: Where `run_phases` keeps its state; None: in the folder of unlearning.
    """
    folders.check_inputs(identify_inputs(config, original, sets))
    saved = folders.load("unlearned", original)
    if saved is not None:
        return saved
    unlearn, newest = config.unlearn, config.pretrained or folders.pretrained
    facts = from_primary(
        lambda: {
            "original_weights": original_weights(shipped.resolved(str(newest))),
            "first_original": first_of_line(newest),
        }
    )
    if config.data.retain_images == "generated":
        sets = sets._replace(retain=generated_images(config, folders, original, sets.retain))
    teacher = budget = None
    if unlearn.retain_budget is not None:
        with barrier():
            teacher = budget_reference(config, newest, facts["first_original"])
            budget = retain_budget(config, teacher)
    objective = unlearn.objective(config.model)
    if objective.phases is not None:
        folder = phases or folders.unlearn
        facts["phases"] = run_phases(config, folder, original, sets, devices, teacher=teacher)
        logger.info("Losses at the end of the phases: %s", facts["phases"])
        objective = dataclasses.replace(objective, rule=objective.phases.settle(facts["phases"]))
    start = _Start(original, sets, devices, teacher, unlearn.weight, budget)
    params = _train("unlearn", objective, config, folders.unlearn, start)
    if budget is not None:
        facts["retain_budget"] = _report_budget(outcome_of(budget), unlearn)
    adapter = params.pop(ADAPTER, None)
    beside = {}
    if adapter is not None:
        beside = {adapters.FILE: _adapter_file(config, adapter, original, facts)}
    card = (
        model_card(config, f"unlearned by the method {unlearn.method}") | facts | folders.facts("unlearned")
    )
    save_model(folders.unlearned, params, card, beside=beside)
    return params


def identify_inputs(config: Config, original: Params, sets: splits.Split) -> dict[str, dict[str, Any]]:
    """Return the inputs that identify an unlearned model, see `Workdir.check_inputs`."""
    images = sets._asdict()
    if config.unlearn.retain_budget is not None:
        with barrier():
            held_out = open_source(config.data, "validation", config.model.image_size)
            validation = splits.validation_sets(config.data, held_out)
        images |= {f"{name} validation": source for name, source in validation._asdict().items()}
    weights = {"digest": fingerprint(original, config.model.generative_parts)}
    return identify_images(**images) | {"weights": weights}


def generated_images(config: Config, folders: Workdir, original: Params, starts: Source) -> Source:
    """Return what the original model makes of proxies or noise, from the workdir if it is there."""
    images = ImageSet.of(config, starts, "images to generate from", config.data.proxy_transform)
    seed, batch_size = phase_seed(config.seed, 2000), config.evaluate.batch_size
    return generate(config.model, original, images, folders.generated, batch_size=batch_size, seed=seed)


def _adapter_file(config: Config, adapter: Adapter, original: Params, facts: Mapping[str, Any]) -> bytes:
    """Return the content of the file that turns the original model into the unlearned one."""
    unlearn = config.unlearn
    card = {
        **config.describe("family", "model"),
        **facts,
        "method": unlearn.method,
        "adapter": unlearn.adapter,
        "adapter_rank": unlearn.adapter_rank,
        "base": fingerprint(original, config.model.generative_parts),
    }
    return adapters.adapter_bytes(adapter, card)


def run_phases(
    config: Config,
    folder: pathlib.Path,
    original: Params,
    sets: splits.Split,
    devices: Sequence[jax.Device] | None = None,
    *,
    teacher: Params | None = None,
) -> dict[str, dict[str, float]]:
    """Run or resume what precedes a method's own run.

    Args:
      config: See `unlearned_params`.
      folder: Keeps a folder for each phase; other runs of the same seed, rate and length may share them.
      original: See `unlearned_params`.
      sets: See `unlearned_params`.
      devices: See `unlearned_params`.
      teacher: See `l2l_jax.train.loop.TrainRun`.

    Returns:
      The means of each phase's terms over its last tenth of the steps; empty for a method without phases.
    """
    objective = config.unlearn.objective(config.model)
    if objective.phases is None:
        return {}
    unlearn, ends = dataclasses.replace(config.unlearn, log_every=1), {}
    config, start = dataclasses.replace(config, unlearn=unlearn), _Start(original, sets, devices, teacher)
    for name, rule in objective.phases.rules.items():
        _train(f"unlearn {name}", dataclasses.replace(objective, rule=rule), config, folder / name, start)
        ends[name] = from_primary(functools.partial(_terms_at_end, folder / name, unlearn.steps))
    return ends


def _train(name: str, objective: Objective, config: Config, folder: pathlib.Path, start: _Start) -> Params:
    """Run an objective on the training images."""
    unlearn, model, seed = config.unlearn, config.model, phase_seed(config.seed, 1000)
    devices = None if start.devices is None else list(start.devices)
    mesh = sharding.make_mesh(devices, config.mesh)
    pixels = phase_batches(config, unlearn, start.sets._asdict(), folder)
    batches: Batches = pixels
    if unlearn.banked:
        objective = cached_objective(objective, model, unlearn.banked)
        noise = unlearn.options.noise  # type: ignore[attr-defined]  # methods with a cache have noise
        cache = TokenCacheConfig(unlearn.token_bank, unlearn.noise_bank, noise)
        batches = open_token_cache(
            folder / "bank", cache, model, start.original, pixels, seed=seed, mesh=mesh
        )
    trainer = Trainer(name, objective, unlearn, seed=seed, mesh=mesh, parallel=config.parallel)
    run = TrainRun(start.original, batches, folder, start.alpha, start.budget, start.teacher)
    return trainer.train(run)


def _report_budget(outcome: Outcome, unlearn: UnlearningConfig) -> dict[str, Any]:
    """Log what a budget came to, and return it as JSON-able values."""
    if outcome.met:
        logger.info("Inside the retain budget of %g: %s", outcome.budget, outcome)
    else:
        logger.warning(
            "The retain budget of %g cannot be met with %d steps of the method %s; nearest to it comes %s",
            *(outcome.budget, unlearn.steps, unlearn.method, outcome),
        )
    return outcome.describe()


def _terms_at_end(folder: pathlib.Path, steps: int) -> dict[str, float]:
    """Return means of a run's terms over the last tenth of its steps, which are all logged."""
    first = steps - max(1, steps // 10)
    rows = [row for row in read_metrics(folder) if row["step"] > first]
    return {term: float(np.mean([row[term] for row in rows])) for term in ("retain", "forget")}
