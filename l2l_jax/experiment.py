"""An experiment from start to end: model → original weights → unlearn → restore → measure → report."""

import dataclasses
import logging
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from l2l_jax import shipped
from l2l_jax.audit.run import Audit, check_yardstick
from l2l_jax.checkpoints.models import fingerprint, load_params, save_model
from l2l_jax.config import Config, UnlearningConfig
from l2l_jax.data import splits
from l2l_jax.data.pipeline import TrainingBatches, training_batches
from l2l_jax.data.records import Source
from l2l_jax.data.transforms import Transform, TransformConfig
from l2l_jax.errors import UserError
from l2l_jax.evaluation.encoder_features import test_features
from l2l_jax.evaluation.evaluate import Evaluation
from l2l_jax.evaluation.image_set import ImageSet
from l2l_jax.evaluation.report import write_report
from l2l_jax.models.base import Params
from l2l_jax.objectives.adapters import ADAPTER, Adapter
from l2l_jax.objectives.methods import make_task
from l2l_jax.objectives.task import Task, pretraining_task
from l2l_jax.processes.collectives import barrier, from_primary, is_primary
from l2l_jax.processes.setup import peak_memory
from l2l_jax.stages.generation import generate
from l2l_jax.stages.lineage import budget_reference, first_of_line
from l2l_jax.stages.validation import retain_budget
from l2l_jax.token_bank import banked_task, open_bank
from l2l_jax.training import sharding
from l2l_jax.training.budget import Outcome
from l2l_jax.training.loop import train
from l2l_jax.training.metric_writers import read_metrics
from l2l_jax.training.optimizer import TrainingConfig
from l2l_jax.weights import adapter_files
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
    with barrier():
        if config.audit.enabled:
            check_yardstick(config)
        evaluation = Evaluation(config, folders.evaluation)
        sets = training_sets(config, evaluation.train)
    original = original_params(config, folders, evaluation.train)
    clock.lap("pretrain")
    unlearned = unlearned_params(config, folders, original, sets)
    clock.lap("unlearn")
    models = {"original": original, "unlearned": unlearned}
    return _reported(config, folders, evaluation, sets, models, clock)


def audit(config: Config, workdir: pathlib.Path, unlearned: pathlib.Path) -> dict[str, Any]:
    """Audit a model that was unlearned before, and write the report of a run.

    Args:
      config: how it was unlearned, and how it is attacked.
      workdir: where findings and report go; the original model is that of `config.pretrained` or lies here.
      unlearned: folder of the unlearned model; it is not changed.

    Returns:
      The content of `workdir/report/metrics.json`.

    Raises:
      UserError: something the user can mend; the message says how.
      Interrupted: the audit was asked to stop; finished attacks are kept.
    """
    clock = _Clock()
    folders = Workdir(workdir, config)
    with barrier():
        evaluation = Evaluation(config, folders.evaluation)
        sets = training_sets(config, evaluation.train)
        if not config.pretrained and not folders.pretrained.exists():
            raise UserError(
                f"There is no original model to compare with: {folders.pretrained} does not exist; name one "
                "with --config.model.pretrained."
            )
        params = load_pretrained(unlearned, config.family, config.model)
    models = {"original": original_params(config, folders, evaluation.train), "unlearned": params}
    return _reported(config, folders, evaluation, sets, models, clock)


def _reported(config, folders, evaluation, sets, models, clock) -> dict[str, Any]:
    """Evaluate the models, audit them if that is asked for, and write the report."""
    auditor = None
    if config.audit.enabled:
        auditor = Audit(config, evaluation, sets, models["original"], folders.audit)
        models = {**models, **auditor.yardstick}
    results = {name: evaluation.evaluate(params, name) for name, params in models.items()}
    tests = {of: evaluation.tests[of] for of in ("retain", "forget")}
    batch_size = config.evaluate.batch_size
    features = test_features(config.model, models, tests, batch_size=batch_size, seed=config.seed)
    clock.lap("evaluate")
    findings = attacked = None
    if auditor is not None:
        findings = auditor.audit("unlearned", models["unlearned"])
        attacked = auditor.shown("unlearned", findings["shown_attack"]) if is_primary() else None
        clock.lap("audit")
    return from_primary(
        lambda: write_report(
            folders, config, evaluation, results, clock.seconds, clock.memory, features, findings, attacked
        )
    )


def training_sets(config: Config, source: Source) -> splits.Split:
    """The training images to retain, or their proxies, and to forget."""
    sets = splits.training_sets(config.data, source, config.model.image_size)
    kind = "proxies" if config.data.proxy else "to retain"
    if config.data.retain_images == "generated":
        kind = f"{'proxies' if config.data.proxy else 'noise images'} to generate from"
    logger.info("Training images: %d %s, %d to forget", len(sets.retain), kind, len(sets.forget))
    return sets


def original_params(config: Config, folders: Workdir, source: Source) -> Params:
    """The model to unlearn: `config.pretrained`, or the one in the workdir, or pretrained now."""
    model = config.model
    if config.pretrained:
        with barrier():
            _check_shipped(config)
            return load_pretrained(shipped.resolved(config.pretrained), config.family, model)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    if from_primary(folders.pretrained.exists):
        logger.info("Using the pretrained model in %s", folders.pretrained)
        with barrier():
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
    task = make_task(how.method, config.model, **how.options)
    if task.phases is not None:
        facts["phases"] = run_phases(config, phases or folders.unlearn, original, sets, devices)
        logger.info("Losses at the end of the phases: %s", facts["phases"])
        task = task._replace(gradients=task.phases.settle(facts["phases"]))
    budget = None
    if how.retain_budget is not None:
        budget = retain_budget(config, budget_reference(config, newest, facts["first_original"]))
    params = _unlearn(
        "unlearn", task, config, how, folders.unlearn, original, sets, devices,
        alpha=how.weight, budget=budget,
    )  # fmt: skip
    if budget is not None:
        facts["retain_budget"] = _told(budget.outcome(), how)
    adapter = params.pop(ADAPTER, None)
    beside = {} if adapter is None else {adapter_files.FILE: _adapter_file(config, adapter, original, facts)}
    card = _card(config, f"unlearned by the method {how.method}") | facts
    save_model(folders.unlearned, params, card, beside=beside)
    return params


def generated_images(config: Config, folders: Workdir, original: Params, starts: Source) -> Source:
    """What the original model makes of proxies or noise; taken from the workdir if it lies there."""
    model, data = config.model, config.data
    how = Transform(data.proxy_transform, model.image_size, training=False)
    images = ImageSet(
        starts, how, model.value_range, max_bad_fraction=data.max_bad_fraction, name="images to generate from"
    )
    seed = _stage_seed(config.seed, 2000)
    return generate(
        model, original, images, folders.generated, batch_size=config.evaluate.batch_size, seed=seed
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
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Run or continue what comes before a method's own run.

    Args:
      config, original, sets, devices: see `unlearned_params`.
      folder: keeps a folder for each phase; other runs of the same seed, rate and length may share them.

    Returns:
      The means of each phase's terms over its last tenth of the steps; empty for a method without phases.
    """
    task = make_task(config.unlearn.method, config.model, **config.unlearn.options)
    if task.phases is None:
        return {}
    how, ends = dataclasses.replace(config.unlearn, log_every=1), {}
    for name, rule in task.phases.rules.items():
        phase = task._replace(gradients=rule)
        _unlearn(f"unlearn {name}", phase, config, how, folder / name, original, sets, devices)
        ends[name] = from_primary(lambda name=name: _terms_at_end(folder / name, how.steps))
    return ends


def _unlearn(
    name: str, task: Task, config: Config, how: UnlearningConfig, folder: pathlib.Path, original: Params,
    sets: splits.Split, devices: Sequence[jax.Device] | None, **more: Any,
) -> Params:  # fmt: skip
    """One run of a task on the training images."""
    on = None if devices is None else list(devices)
    seed, mesh = _stage_seed(config.seed, 1000), sharding.make_mesh(devices=on, config=config.mesh)
    batches = _batches(config, how, sets._asdict(), folder)
    if how.banked:
        task = banked_task(task, config.model, how.banked)
        batches = open_bank(folder / "bank", how, config.model, original, batches, seed=seed, mesh=mesh)
    return train(
        name, task, original, batches, how, folder, seed=seed, mesh=mesh, parallel=config.parallel, **more
    )


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
    how = {}
    if data.retain_images == "generated":
        how = {"retain": TransformConfig(flip=data.flip)}  # they are squares of the right size already
    elif data.proxy:
        how = {"retain": data.proxy_transform}
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
    """Seconds spent in the phases of a run, and the process's greatest memory in GiB up to their ends."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.memory: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = round(now - self._last, 2)
        self.memory[name] = round(peak_memory(), 3)
        self._last = now
