"""An overview of a run: its phases before it starts, and its time as soon as some steps are timed."""

import itertools
import logging
import time
from collections.abc import Iterator
from typing import NamedTuple

from l2l_jax.audit.attacks.base import Work
from l2l_jax.audit.run import Audit
from l2l_jax.config import Config
from l2l_jax.evals.evaluator import Evaluation
from l2l_jax.evals.features.networks import find_weights
from l2l_jax.experiment.gold_standard import TRAIN, retrained_names
from l2l_jax.experiment.phase import open_phase
from l2l_jax.experiment.pretrain import LENGTHS
from l2l_jax.experiment.workdir import Workdir
from l2l_jax.train import sharding
from l2l_jax.train.hooks import Hook
from l2l_jax.train.loop import Training
from l2l_jax.train.optim import TrainingConfig
from l2l_jax.train.parallel import make_parallel
from l2l_jax.utils.progress import duration
from l2l_jax.utils.runtime import peak_memory

logger = logging.getLogger(__name__)

NOTEWORTHY = 1.0
"""GB of training state from which on its size is said: below, the program itself needs more."""

TIMED = (2, 5)
"""Steps of a training between which its speed is measured; the first compiles."""


class _Phase(NamedTuple):
    """A phase of a run: its title, a short name, and its images; none where it takes no noticeable time."""

    title: str
    name: str = ""
    work: Work = Work(0)


class Outlook(Hook):
    """An overview of a run's phases, and as a hook an estimate of their durations.

    The estimate takes every training to be as fast per image as the one that is timed, and a forward pass to
    be a third of a training step. Finished models are read from the workdir.
    """

    def __init__(self, config: Config, folders: Workdir, evaluation: Evaluation, auditor: Audit | None):
        self._config, self._folder = config, folders.folder
        images = sum(map(len, evaluation.tests.values()))
        self._phases = [*_training(config, folders), *_judging(config, images, auditor)]
        self._timer: tuple[int, float] | None = None
        self._logged = False

    def announce(self) -> None:
        """Log the phases with their lengths, the memory of the training state, and the workdir."""
        config = self._config
        parallel = make_parallel(sharding.make_mesh(config=config.mesh), config.parallel)
        _, state = open_phase(config, "unlearn").step(parallel)
        size = sharding.device_bytes(state, parallel.mesh.size) / 1e9
        logger.info(
            "In %s:\n%s\n  %sCtrl-C is safe: the same command resumes. Each phase shows the time left.",
            self._folder,
            "\n".join(f"  {number}. {phase.title}" for number, phase in enumerate(self._phases, 1)),
            f"At least {size:.2g} GB of memory on each device while training. " if size >= NOTEWORTHY else "",
        )
        evaluate = config.evaluate
        absent = [name for name in evaluate.networks if find_weights(evaluate, name) is None]
        if absent:
            logger.warning("Metrics of %s will be missing: their weights are not here.", " and ".join(absent))

    def estimate(self, seconds_per_image: float) -> dict[str, float]:
        """Return seconds by phase, from those of one image of a training step."""
        passes = self._config.model.inpaint_passes / 3
        return {
            phase.name: seconds_per_image * (phase.work.trained + passes * phase.work.reconstructed)
            for phase in self._phases
            if phase.name
        }

    def begin(self, training: Training) -> None:
        """Start to time a training."""
        self._timer = None

    def after_step(self, training: Training) -> None:
        """Log the estimate once some steps of the first training are timed."""
        step, (first, last) = training.step - training.first, TIMED
        if self._logged or step not in TIMED:
            return
        training.check()  # waits for the step
        now = time.monotonic()
        if step == first or self._timer is None:
            self._timer = step, now
            return
        self._logged = True
        images = (last - first) * training.config.batch_size * len(training.objective.sets)
        seconds = self.estimate((now - self._timer[1]) / images)
        logger.info(
            "All this takes about %s on this machine (%s); %.1f GiB of memory so far.",
            _about(sum(seconds.values())),
            ", ".join(f"{name} {_about(value)}" for name, value in seconds.items()),
            peak_memory(),
        )


def _training(config: Config, folders: Workdir) -> Iterator[_Phase]:
    """Yield the phases that make the original and the unlearned model."""
    if config.pretrained or folders.pretrained.exists():
        yield _Phase(f"read the original model, {config.pretrained or folders.pretrained}")
    else:
        for stage in config.model.pretraining_stages():
            pretrain = config.pretrain[stage.name]
            title = f"train the original model, {stage.name}: {_length(pretrain)}"
            yield _Phase(title, f"pretraining, {stage.name}", Work(0, pretrain.steps * pretrain.batch_size))
    if folders.unlearned.exists():
        yield _Phase(f"read the unlearned model, {folders.unlearned}")
        return
    if config.data.retain_images == "generated":
        yield _Phase("let the original model generate retain images")
    training, own = config.unlearn, config.unlearn.objective(config.model)
    steps, length = training.cycles[0], _length(training)
    if own.one_shot:
        steps, length = (2 * own.one_shot.iterations + 2) * own.one_shot.batches, "one step"
    work = Work(0, steps * training.batch_size * len(own.sets))
    for name in own.phases.rules if own.phases else ():
        yield _Phase(f"unlearn, {name}: {length}", f"unlearning, {name}", work)
    yield _Phase(f"unlearn, method {training.method}: {length}", "unlearning", work)


def _judging(config: Config, images: int, auditor: Audit | None) -> Iterator[_Phase]:
    """Yield the phases after unlearning; `images` is the number of test images."""
    models = 2 if auditor is None else 2 + len(retrained_names(config))
    if auditor is not None and TRAIN in config.audit.retrained:
        trainings = [config.pretrain[stage.name] for stage in config.model.pretraining_stages()]
        shortest, *_, longest = itertools.accumulate(LENGTHS)
        steps = sum(training.steps for training in trainings)
        trained = sum(training.steps * training.batch_size for training in trainings)
        title = "train the retrained model without the forget images: "
        title += f"{round(shortest * steps):,} to {round(longest * steps):,} steps"
        yield _Phase(title, "retraining at least", Work(0, shortest * trained))
    title = f"evaluate {models} models on {images:,} test images"
    yield _Phase(title, "evaluation", Work(models * images))
    if auditor is not None:
        attacks = len(auditor.lines) - 1
        title = f"audit: {attacks} attack{'s' * (attacks > 1)} on each of {models} models"
        work = (models * sum(parts) for parts in zip(*auditor.work(), strict=True))
        yield _Phase(title, "audit", Work(*work))


def _length(training: TrainingConfig) -> str:
    first, most = training.cycles[0], training.steps
    steps = f"{first:,}" if first == most else f"{first:,} to {most:,}"
    return f"{steps} steps of {training.batch_size} images of each set"


def _about(seconds: float) -> str:
    """Describe an estimate: seconds to the next ten, from two minutes on whole minutes."""
    step = 10 if seconds < 120 else 60
    return duration(max(1, round(seconds / step)) * step).removesuffix(" 0 s")
