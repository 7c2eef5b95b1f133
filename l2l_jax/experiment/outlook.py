"""Overview of a run: its phases before it starts, and its estimated duration once some steps are timed."""

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
"""GB of training state above which its size is logged; below, the program itself needs more."""

TIMED = (2, 5)
"""Steps of a training run between which its speed is measured; the first step compiles."""


class _Phase(NamedTuple):
    """A phase of a run: its title, a short name, and its work; no work if it takes negligible time."""

    title: str
    name: str = ""
    work: Work = Work(0)


class Outlook(Hook):
    """An overview of a run's phases, and a training hook that estimates their durations.

    The estimate assumes that all training runs take as long per image as the timed one, and that a forward
    pass takes a third of a training step. Finished models are loaded from the workdir.
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
            "In %s:\n%s\n  %sCtrl-C is safe: the same command resumes. Each phase shows the remaining time.",
            self._folder,
            "\n".join(f"  {number}. {phase.title}" for number, phase in enumerate(self._phases, 1)),
            f"At least {size:.2g} GB of memory on each device while training. " if size >= NOTEWORTHY else "",
        )
        evaluate = config.evaluate
        absent = [name for name in evaluate.networks if find_weights(evaluate, name) is None]
        if absent:
            logger.warning("Metrics of %s will be missing: weights were not found.", " and ".join(absent))

    def estimate(self, seconds_per_image: float) -> dict[str, float]:
        """Return the seconds of each phase, given the seconds per image of a training step."""
        passes = self._config.model.inpaint_passes / 3
        return {
            phase.name: seconds_per_image * (phase.work.trained + passes * phase.work.reconstructed)
            for phase in self._phases
            if phase.name
        }

    def begin(self, training: Training) -> None:
        """Reset the timer at the start of a training run."""
        self._timer = None

    def after_step(self, training: Training) -> None:
        """Log the estimate once some steps of the first training run are timed."""
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
            "The run takes about %s on this machine (%s); %.1f GiB of memory so far.",
            _about(sum(seconds.values())),
            ", ".join(f"{name} {_about(value)}" for name, value in seconds.items()),
            peak_memory(),
        )


def _training(config: Config, folders: Workdir) -> Iterator[_Phase]:
    """Yield the phases that produce the original and the unlearned model."""
    if config.pretrained or folders.pretrained.exists():
        yield _Phase(f"load the original model, {config.pretrained or folders.pretrained}")
    else:
        for stage in config.model.pretraining_stages():
            pretrain = config.pretrain[stage.name]
            title = f"train the original model, {stage.name}: {_length(pretrain)}"
            yield _Phase(title, f"pretraining, {stage.name}", Work(0, pretrain.steps * pretrain.batch_size))
    if folders.unlearned.exists():
        yield _Phase(f"load the unlearned model, {folders.unlearned}")
        return
    if config.data.retain_images == "generated":
        yield _Phase("generate retain images with the original model")
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
    """Format an estimate, rounded to tens of seconds, or to minutes from two minutes on."""
    step = 10 if seconds < 120 else 60
    return duration(max(1, round(seconds / step)) * step).removesuffix(" 0 s")
