"""Unlearning of an original model on the retain and forget images; the result is saved to disk."""

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
from l2l_jax.data.sources import open_source
from l2l_jax.data.splits import Split, validation_sets
from l2l_jax.evals.image_set import ImageSet
from l2l_jax.experiment.budget import budget_reference, first_of_line, outcome_of, retain_budget
from l2l_jax.experiment.generate import generate
from l2l_jax.experiment.phase import open_phase, phase_seed
from l2l_jax.experiment.pretrain import model_card
from l2l_jax.experiment.workdir import Workdir, identify_images
from l2l_jax.models.adapters import ADAPTER, Adapter
from l2l_jax.models.base import Params
from l2l_jax.train.hooks import Hook, read_metrics
from l2l_jax.utils.multihost import barrier, from_primary
from l2l_jax.weights import adapters
from l2l_jax.weights.loading import original_weights
from l2l_jax.weights.saved_models import fingerprint, save_model

logger = logging.getLogger(__name__)
Devices = Sequence[jax.Device] | None


def unlearned_params(
    config: Config,
    folders: Workdir,
    original: Params,
    sets: Split,
    *,
    devices: Devices = None,
    phases: pathlib.Path | None = None,
    hooks: Sequence[Hook] = (),
) -> Params:
    """Unlearn the original model, or load the finished unlearned model from the workdir.

    `devices` default to all; `phases` is the folder for `run_phases`, by default that of unlearning; `hooks`
    are called after each unlearning step.
    """
    folders.check_inputs(lambda: identify_inputs(config, original, sets))
    saved = folders.load("unlearned", original)
    if saved is not None:
        return saved
    unlearn, newest = config.unlearn, config.pretrained or folders.pretrained

    def describe() -> dict[str, Any]:
        weights = original_weights(shipped.resolved(str(newest)))
        return {"original_weights": weights, "first_original": first_of_line(newest)}

    facts = from_primary(describe)
    if config.data.retain_images == "generated":
        starts = ImageSet(config, sets.retain, "images to generate from", config.data.proxy_transform)
        seed, size = phase_seed(config.seed, 2000), config.evaluate.batch_size
        images = generate(config.model, original, starts, folders.generated, batch_size=size, seed=seed)
        sets = sets._replace(retain=images)
    teacher = budget = None
    if unlearn.retain_budget is not None:
        with barrier():
            teacher = budget_reference(config, newest, facts["first_original"])
            budget = retain_budget(config, teacher)
    phase = open_phase(config, "unlearn")
    if phase.objective.phases is not None:
        folder = phases or folders.unlearn
        facts["phases"] = run_phases(config, folder, original, sets, devices, teacher=teacher)
        logger.info("Losses at the end of the phases: %s", facts["phases"])
        rule = phase.objective.phases.settle(facts["phases"])
        phase = dataclasses.replace(phase, objective=dataclasses.replace(phase.objective, rule=rule))
    run = {"alpha": unlearn.weight, "budget": budget, "teacher": teacher, "hooks": hooks}
    params = phase.train("unlearn", sets._asdict(), original, folders.unlearn, devices, **run)
    if budget is not None:
        outcome = outcome_of(budget)
        steps = "one step" if phase.objective.one_shot else f"{budget.ended} steps"
        outcome.log(f"{steps} of the method {unlearn.method}")
        facts["retain_budget"] = outcome.describe()
    adapter = params.pop(ADAPTER, None)
    beside = {} if adapter is None else {adapters.FILE: _adapter_file(config, adapter, original, facts)}
    metadata = model_card(config, f"unlearned by the method {unlearn.method}")
    save_model(folders.unlearned, params, metadata | facts | folders.facts("unlearned"), beside=beside)
    return params


def identify_inputs(config: Config, original: Params, sets: Split) -> dict[str, dict[str, Any]]:
    """Return digests of the inputs that identify an unlearned model; see `Workdir.check_inputs`."""
    images = sets._asdict()
    if config.unlearn.retain_budget is not None:
        held_out = open_source(config.data, "validation", config.model.image_size)
        validation = validation_sets(config.data, held_out)
        images |= {f"{name} validation": source for name, source in validation._asdict().items()}
    weights = {"digest": fingerprint(original, config.model.generative_parts)}
    return identify_images(**images) | {"weights": weights}


def _adapter_file(config: Config, adapter: Adapter, original: Params, facts: Mapping[str, Any]) -> bytes:
    """Return the contents of the adapter file that turns the original model into the unlearned model."""
    names = ("method", "adapter", "adapter_rank", "adapter_layers")
    metadata = config.describe("family", "model") | dict(facts)
    metadata |= {name: getattr(config.unlearn, name) for name in names}
    metadata["base"] = fingerprint(original, config.model.generative_parts)
    return adapters.adapter_bytes(adapter, metadata)


def run_phases(
    config: Config,
    folder: pathlib.Path,
    original: Params,
    sets: Split,
    devices: Devices = None,
    *,
    teacher: Any = None,
) -> dict[str, dict[str, float]]:
    """Run or resume the phases before a method's own run; for arguments see `unlearned_params`, `TrainRun`.

    `folder` holds a subfolder for each phase; runs of the same seed, learning rate and length may share them.

    Returns:
      Terms of each phase, averaged over the last tenth of its steps; empty for a method without phases.
    """
    unlearn = dataclasses.replace(config.unlearn, log_every=1)
    phase = open_phase(dataclasses.replace(config, unlearn=unlearn), "unlearn")
    rules, ends = phase.objective.phases.rules if phase.objective.phases else {}, {}
    for name, rule in rules.items():
        ruled = dataclasses.replace(phase, objective=dataclasses.replace(phase.objective, rule=rule))
        title, own = f"unlearn {name}", folder / name
        ruled.train(title, sets._asdict(), original, own, devices, teacher=teacher)
        ends[name] = from_primary(functools.partial(_terms_at_end, own, unlearn.cycles[0]))
    return ends


def _terms_at_end(folder: pathlib.Path, steps: int) -> dict[str, float]:
    """Return the terms of a run averaged over the last tenth of its steps, which are all logged."""
    first = steps - max(1, steps // 10)
    rows = [row for row in read_metrics(folder) if row["step"] > first]
    return {term: float(np.mean([row[term] for row in rows])) for term in ("retain", "forget")}
