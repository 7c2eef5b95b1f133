"""What validation images are for: a retain budget."""

import math
from typing import Any, NamedTuple

import numpy as np

from l2l_jax.config import Config
from l2l_jax.data.sources import open_source
from l2l_jax.data.splits import validation_sets
from l2l_jax.evals.image_set import ImageSet
from l2l_jax.evals.intervals import Interval, bootstrap
from l2l_jax.evals.tasks import budget_task
from l2l_jax.models.base import Params
from l2l_jax.train.budget import BudgetConfig, RetainBudget
from l2l_jax.train.parallel import Parallel
from l2l_jax.train.validation_errors import MaskedErrors
from l2l_jax.utils.multihost import barrier


def retain_budget(config: Config, reference: Params | None = None) -> RetainBudget:
    """The budget of `config.unlearn`, measured on validation images at the `budget_task` of the tasks.

    Args:
      config: the experiment.
      reference: the model that errors are relative to; None: the one that is unlearned.

    Raises:
      UserError: there are no validation images.
    """
    how, mask = config.unlearn, budget_task(config.evaluate.tasks).mask(config.model.image_size)
    assert how.retain_budget is not None, "there is a budget"
    images = validation_images(config, how.budget_images)

    def make_errors(parallel: Parallel) -> MaskedErrors:
        return MaskedErrors(
            config.model, mask, images, rows=2 * how.batch_size, seed=config.seed, parallel=parallel
        )

    most = 1.0 if how.method == "epsilon" else math.inf
    budget = BudgetConfig(how.retain_budget, how.budget_every, how.budget_rate, how.steps, most)
    return RetainBudget(budget, make_errors, reference)


class Outcome(NamedTuple):
    """The model that a budgeted run ends with.

    Attributes:
      budget: Greatest allowed retain ratio.
      step: Step after which it was taken.
      retain, forget: Ratios of its mean error to the original's, of images paired.
      weight: Weight of the forget term in that step.
      images: Number of validation images measured, of each set.
    """

    budget: float
    step: int
    retain: Interval
    forget: Interval
    weight: float
    images: dict[str, int]

    @property
    def met(self) -> bool:
        """Whether it is inside the budget."""
        return self.retain.value <= self.budget

    def describe(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
        facts = self._asdict() | {"met": self.met}
        return facts | {name: getattr(self, name)._asdict() for name in ("retain", "forget")}

    def __str__(self) -> str:
        retain, forget = (
            f"{x.value:.3f} times the original's (95% CI {x.low:.3f}–{x.high:.3f})"
            for x in (self.retain, self.forget)
        )
        return (
            f"the model after step {self.step}: error of retain validation images {retain}, of forget ones "
            f"{forget}"
        )


def outcome_of(budget: RetainBudget) -> Outcome:
    """The best model of a finished run, with bootstrap intervals over the validation images."""
    best, errors = budget.result()

    def interval(name: str) -> Interval:
        now, original = errors[name], budget.reference_errors[name]
        return bootstrap(lambda chosen: now[chosen].mean(-1) / original[chosen].mean(-1), len(now))

    images = {name: len(x) for name, x in errors.items()}
    return Outcome(
        budget.config.budget, best.step, interval("retain"), interval("forget"), best.weight, images
    )


def validation_images(config: Config, count: int) -> dict[str, np.ndarray]:
    """At most `count` validation images of each set, evenly spaced, `[image, height, width, channel]`.

    All processes read them all.

    Raises:
      UserError: there are no validation images, or too many cannot be decoded.
    """
    data, size = config.data, config.model.image_size
    with barrier():
        sets = validation_sets(data, open_source(data, "validation", size))._asdict()
        images = {}
        for of, source in sets.items():
            image_set = ImageSet.of(config, source, f"{of} validation")
            chosen = np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)
            images[of] = image_set.read(chosen).images
    return images
