"""The retain budget of an experiment: its reference model and its outcome."""

import logging
import pathlib
from typing import Any, NamedTuple

import numpy as np

from l2l_jax import shipped
from l2l_jax.config import Config
from l2l_jax.data.sources import open_source
from l2l_jax.data.splits import validation_sets
from l2l_jax.errors import UserError
from l2l_jax.evals.image_set import ImageSet
from l2l_jax.evals.intervals import Interval, bootstrap
from l2l_jax.evals.tasks import budget_task
from l2l_jax.models.base import Params
from l2l_jax.train.budget import RetainBudget
from l2l_jax.train.parallel import Parallel
from l2l_jax.train.validation_errors import MaskedErrors
from l2l_jax.weights.loading import load_pretrained
from l2l_jax.weights.saved_models import read_card

logger = logging.getLogger(__name__)


def first_of_line(newest: str | pathlib.Path) -> str:
    """Return the first original model in the chain of unlearned models that ends with the newest one.

    It is an absolute path, or the name of a shipped model.
    """
    path = shipped.resolved(str(newest))
    metadata = read_card(path) if path.is_dir() else {}
    return metadata.get("first_original", _lasting_name(newest))


def budget_reference(config: Config, newest: str | pathlib.Path, first: str) -> Params | None:
    """Load the reference model of a retain budget; None if it is the model to unlearn, `newest`.

    Raises:
      UserError: The first original model no longer exists or is a different model.
    """
    given = config.unlearn.budget_original
    if not given and first == _lasting_name(newest):
        return None
    try:
        return load_pretrained(shipped.resolved(given or first), config.family, config.model)
    except UserError as error:
        raise UserError(
            f"The retain budget is relative to {given or first}, the first original model: {error} Give "
            "its current path with --config.unlearn.budget_original=PATH."
        ) from error


def _lasting_name(model: str | pathlib.Path) -> str:
    """Return a name of the model that is valid in any working directory."""
    return str(model) if str(model) in shipped.names() else str(pathlib.Path(model).absolute())


def retain_budget(config: Config, reference: Params | None = None) -> RetainBudget:
    """Return the budget of `config.unlearn`, measured on validation images with the tasks' `budget_task`.

    Errors are relative to `reference`, or to the model to unlearn if it is None.
    """
    unlearn, model = config.unlearn, config.model
    images = validation_images(config, unlearn.budget_images)
    mask, rows = budget_task(config.evaluate.tasks).mask(model.image_size), 2 * unlearn.batch_size

    def make_errors(parallel: Parallel) -> MaskedErrors:
        return MaskedErrors(model, mask, images, rows=rows, seed=config.seed, parallel=parallel)

    return RetainBudget(unlearn, make_errors, reference)


def validation_images(config: Config, count: int) -> dict[str, np.ndarray]:
    """Read at most `count` evenly spaced validation images of each set, `[image, height, width, channel]`.

    Raises:
      UserError: There are no validation images.
    """
    sets = validation_sets(config.data, open_source(config.data, "validation", config.model.image_size))
    images = {}
    for name, source in sets._asdict().items():
        chosen = np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)
        images[name] = ImageSet(config, source, f"{name} validation").read(chosen).images
    return images


class Outcome(NamedTuple):
    """The final model of a run with a retain budget."""

    budget: float  # greatest allowed retain ratio
    step: int  # step after which the model was taken
    retain: Interval  # mean error relative to the original model, paired by image
    forget: Interval
    weight: float  # weight of the forget term in that step
    images: dict[str, int]  # number of validation images measured, by set

    @property
    def met(self) -> bool:
        """Return whether the model is within the budget."""
        return self.retain.value <= self.budget

    def describe(self) -> dict[str, Any]:
        """Return the outcome as JSON-serializable values."""
        intervals = {"retain": self.retain._asdict(), "forget": self.forget._asdict()}
        return self._asdict() | {"met": self.met} | intervals

    def log(self, effort: str) -> None:
        """Log the outcome of the given effort, such as "500 steps of the method undo"."""
        retain, forget = (
            f"{x.value:.3f} times the original's (95% CI {x.low:.3f}–{x.high:.3f})"
            for x in (self.retain, self.forget)
        )
        result = f"the model after step {self.step}: error on retain validation images {retain}, on forget "
        result += f"images {forget}"
        if self.met:
            logger.info("Within the retain budget of %g: %s", self.budget, result)
        else:
            missed = "The retain budget of %g cannot be met with %s; the closest result is %s."
            remedy = " Increase the budget or config.unlearn.steps."
            logger.warning(missed + remedy, self.budget, effort, result)


def outcome_of(budget: RetainBudget) -> Outcome:
    """Return the outcome of a finished run, with bootstrap intervals over the validation images."""
    best, errors = budget.result()

    def interval(name: str) -> Interval:
        now, original = errors[name], budget.reference_errors[name]
        return bootstrap(lambda chosen: now[chosen].mean(-1) / original[chosen].mean(-1), len(now))

    images = {name: len(x) for name, x in errors.items()}
    return Outcome(budget.budget, best.step, interval("retain"), interval("forget"), best.weight, images)
