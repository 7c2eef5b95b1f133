"""The retrained model: the same model, trained without the forget set, as the gold standard of forgetting.

What it reconstructs of forget images it owes to what they share with the others. To be a fair comparison it
must reconstruct retain images about as well as the model that saw everything.
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
"""Greatest ratio of a fair retrained model's masked MSE on retain validation images to the original's."""

LENGTHS = (1.2, 1.6, 2.4)
"""Lengths of retraining, in lengths of the original's training: the next one if the one before does not give
a fair model. Fewer images of fewer kinds take longer to reach the same error."""


class Retrained(NamedTuple):
    """A model that was trained without the forget set.

    Attributes:
      params: Its parameters.
      length: Length of its training, in lengths of the original's.
      ratio: Ratio of its masked MSE on retain validation images to the original's.
    """

    params: Params
    length: float
    ratio: float

    @property
    def fair(self) -> bool:
        """Whether it is a fair comparison."""
        return self.ratio <= FAIR_RATIO


def retrain(
    config: Config,
    original: Params,
    folder: pathlib.Path,
    lengths: Sequence[float] = LENGTHS,
    source: Source | None = None,
) -> Retrained:
    """Train a config's model on its retain images alone, until it reconstructs them as the original does.

    Args:
      config: The experiment; its validation images decide how long.
      original: Parameters of the model that saw everything.
      folder: Keeps checkpoints and metrics of each length.
      lengths: Lengths to try, one after the other.
      source: Training images of all classes; None: those of `config.data`.

    Returns:
      The first fair model, or the best of all lengths.

    Raises:
      UserError: There are no validation images.
    """
    size = config.model.image_size
    retained = validation_sets(config.data, open_source(config.data, "validation", size)).retain
    limit = masked_errors(config, original, retained).mean()
    without_forget, tried = images_without_forget(config, source), []
    for length in lengths:
        phases = {
            name: dataclasses.replace(training, steps=round(training.steps * length))
            for name, training in config.pretrain.items()
        }
        longer = dataclasses.replace(config, pretrain=phases)
        params = pretrain(longer, folder / f"{length:g}", without_forget, title="retrained model,")
        ratio = float(masked_errors(config, params, retained).mean() / limit)
        logger.info("Retrained at %g times the length: %.3f times the original's error", length, ratio)
        tried.append(Retrained(params, length, ratio))
        if tried[-1].fair:
            break
    return min(tried, key=lambda model: model.ratio)


def images_without_forget(config: Config, source: Source | None = None) -> Source:
    """Return the retain images of `source`, or of the training images of `config.data`."""
    size = config.model.image_size
    source = source or open_source(config.data, "train", size)
    return training_sets(dataclasses.replace(config.data, retain_images="real"), source, size).retain
