"""The gold standard of forgetting: the same model, trained without the forget set.

It never saw a forget image, so whatever it restores of them it owes to what they share with the others. To
be a fair yardstick it has to restore retain images about as well as the model that saw everything.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from l2l_jax.config import Config
from l2l_jax.data.records import Source
from l2l_jax.data.sources import open_source
from l2l_jax.data.splits import training_sets, validation_sets
from l2l_jax.evals.inpaint import masked_errors
from l2l_jax.experiment.pretrain import pretrain
from l2l_jax.models.base import Params

logger = logging.getLogger(__name__)

FAIR_RATIO = 1.1
"""A retrained model is a fair yardstick up to this ratio of its mask error on retain validation images to the
original model's."""

LENGTHS = (1.2, 1.6, 2.4)
"""How long a retrained model is trained, in lengths of the original's training: the next one if the one
before does not give a fair yardstick. Fewer images of fewer kinds take longer to reach the same error."""


class Retrained(NamedTuple):
    """A model that was trained without the forget set.

    Attributes:
      params: its parameters.
      length: of its training, in lengths of the original's.
      ratio: of its mask error on retain validation images to the original's.
    """

    params: Params
    length: float
    ratio: float

    @property
    def fair(self) -> bool:
        """Whether it is a fair yardstick."""
        return self.ratio <= FAIR_RATIO


def retrain(
    config: Config,
    original: Params,
    folder: pathlib.Path,
    lengths: Sequence[float] = LENGTHS,
    source: Source | None = None,
) -> Retrained:
    """Train the model of a recipe on its retain images alone, until it restores them as the original does.

    Args:
      config: the recipe; its validation images decide how long.
      original: parameters of the model that saw everything.
      folder: keeps checkpoints and scalars of each length.
      lengths: to try, one after the other.
      source: Training images of all classes; None: those of `config.data`.

    Returns:
      The first fair yardstick, or the best of all lengths.

    Raises:
      UserError: there are no validation images.
    """
    validation = open_source(config.data, "validation", config.model.image_size)
    retained = validation_sets(config.data, validation).retain
    limit = masked_errors(config, original, retained).mean()
    source = source or open_source(config.data, "train", config.model.image_size)
    data = dataclasses.replace(config.data, retain_images="real")
    without_forget = training_sets(data, source, config.model.image_size).retain
    tried = []
    for length in lengths:
        stages = {
            name: dataclasses.replace(stage, steps=round(stage.steps * length))
            for name, stage in config.pretrain.items()
        }
        longer = dataclasses.replace(config, pretrain=stages)
        params = pretrain(longer, folder / f"{length:g}", without_forget)
        ratio = float(masked_errors(config, params, retained).mean() / limit)
        logger.info("Retrained at %g times the length: %.3f times the original's error", length, ratio)
        tried.append(Retrained(params, length, ratio))
        if tried[-1].fair:
            break
    return min(tried, key=lambda model: model.ratio)
