"""What validation images are for: a retain budget."""

import math

import numpy as np

from l2l_jax.config import Config
from l2l_jax.data.sources import open_source
from l2l_jax.data.splits import validation_sets
from l2l_jax.evals.image_set import ImageSet
from l2l_jax.evals.tasks import budget_task
from l2l_jax.models.base import Params
from l2l_jax.train.budget import RetainBudget
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

    return RetainBudget(
        how.retain_budget, every=how.budget_every, rate=how.budget_rate, steps=how.steps,
        make_errors=make_errors, reference=reference, most=1.0 if how.method == "epsilon" else math.inf,
    )  # fmt: skip


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
