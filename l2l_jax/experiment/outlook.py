"""An overview of a run, logged before it starts; what would fail later fails here."""

import logging

from l2l_jax.audit.run import Audit
from l2l_jax.config import Config
from l2l_jax.data.splits import Split
from l2l_jax.evals.evaluator import Evaluation
from l2l_jax.evals.features.networks import find_weights
from l2l_jax.experiment.gold_standard import TRAIN
from l2l_jax.experiment.phase import open_phase
from l2l_jax.experiment.pretrain import LENGTHS
from l2l_jax.experiment.workdir import Workdir
from l2l_jax.train import sharding
from l2l_jax.train.optim import TrainingConfig
from l2l_jax.train.parallel import make_parallel

logger = logging.getLogger(__name__)

NOTEWORTHY = 1.0
"""GB of training state from which on its size is said: below, the program itself needs more."""


def announce(config: Config, folders: Workdir, evaluation: Evaluation, sets: Split) -> None:
    """Log the phases of a run with their lengths, the memory of the training state, and the workdir.

    Raises:
      UserError: A later phase cannot be done: an attack needs more images than there are, or a file of
        weights that the config names does not exist.
    """
    phases = [*_training_phases(config, folders)]
    models = 3 if config.audit.enabled and config.audit.retrained else 2
    images = sum(map(len, evaluation.tests.values()))
    phases.append(f"evaluate {models} models on {images:,} test images")
    if config.audit.enabled:
        attacks = len(Audit(config, evaluation, sets, folders.audit).lines) - 1
        phases.append(f"audit: {attacks} attack{'s' * (attacks > 1)} on each of {models} models")
    absent = [name for name in config.evaluate.networks if find_weights(config.evaluate, name) is None]
    size = _state_bytes(config) / 1e9
    logger.info(
        "In %s:\n%s\n  %sCtrl-C is safe: the same command resumes. Each phase shows the time it has left.",
        folders.folder,
        "\n".join(f"  {number}. {phase}" for number, phase in enumerate(phases, 1)),
        f"At least {size:.2g} GB of memory on each device while training. " if size >= NOTEWORTHY else "",
    )
    if absent:
        logger.warning("Metrics of %s will be missing: their weights are not here.", " and ".join(absent))


def _training_phases(config: Config, folders: Workdir) -> list[str]:
    pretraining = [(stage.name, config.pretrain[stage.name]) for stage in config.model.pretraining_stages()]
    found = []
    if config.pretrained or folders.pretrained.exists():
        found.append(f"read the original model, {config.pretrained or folders.pretrained}")
    else:
        found += [f"train the original model, {name}: {_length(one)}" for name, one in pretraining]
    if folders.unlearned.exists():
        found.append(f"read the unlearned model, {folders.unlearned}")
    else:
        if config.data.retain_images == "generated":
            found.append("let the original model generate retain images")
        own = config.unlearn.objective(config.model).phases
        found += [f"unlearn, {name}: {_length(config.unlearn)}" for name in (own.rules if own else ())]
        found.append(f"unlearn, method {config.unlearn.method}: {_length(config.unlearn)}")
    if config.audit.enabled and TRAIN in config.audit.retrained:
        steps = sum(one.steps for _, one in pretraining)
        shortest, longest = (round(steps * length) for length in (LENGTHS[0], sum(LENGTHS)))
        found.append(
            f"train the retrained model without the forget images: {shortest:,} to {longest:,} steps"
        )
    return found


def _length(training: TrainingConfig) -> str:
    return f"{training.steps:,} steps of {training.batch_size} images of each set"


def _state_bytes(config: Config) -> int:
    """Return the bytes of parameters, optimizer state and batch of unlearning on each device."""
    parallel = make_parallel(sharding.make_mesh(config=config.mesh), config.parallel)
    _, arguments = open_phase(config, "unlearn").step(parallel)
    return sharding.device_bytes(arguments, parallel.mesh.size)
