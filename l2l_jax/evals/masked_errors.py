"""Masked MSE of a model over the images of a source."""

import numpy as np

from l2l_jax.config import Config
from l2l_jax.data.records import Source
from l2l_jax.evals import metrics
from l2l_jax.evals.image_set import ImageSet
from l2l_jax.evals.inpaint import Restorer
from l2l_jax.evals.tasks import parse_tasks
from l2l_jax.models.base import Params


def masked_errors(
    config: Config,
    params: Params,
    source: Source,
    restorer: Restorer | None = None,
    of: str = "validation",
) -> np.ndarray:
    """Mean squared error inside the mask of the first task of each image of a source, `[image]`.

    Args:
      config: the recipe.
      params: all parts of the model.
      source: the images.
      restorer: one of that task which was compiled before.
      of: name of the set, on which the noise of sampling depends: with the evaluation's name of it, these are
        the evaluation's errors.
    """
    images = ImageSet.of(config, source, of)
    task, batch_size = parse_tasks(config.evaluate.tasks)[0], config.evaluate.batch_size
    restorer = restorer or Restorer(config.model, task, batch_size=batch_size, seed=config.seed)
    errors = [
        metrics.masked_mse(originals.images, restored, restorer.masks(of, originals.indices))
        for originals, restored in restorer.restore_set(restorer.place(params), images, of)
    ]
    return np.concatenate(errors)
