"""Training images of a phase: which they are, and how they become batches."""

import logging
import pathlib
from collections.abc import Mapping

import jax

from l2l_jax.config import Config
from l2l_jax.data import splits
from l2l_jax.data.loader import LoaderOptions, TrainingBatches, training_batches
from l2l_jax.data.reading import warn_of_shrinking
from l2l_jax.data.records import Source
from l2l_jax.data.transforms import Transform, TransformConfig
from l2l_jax.errors import UserError
from l2l_jax.train.optim import TrainingConfig

logger = logging.getLogger(__name__)


def training_sets(config: Config, source: Source) -> splits.Split:
    """Choose the training images to retain, or their proxies, and to forget, and log them by class."""
    sets = splits.training_sets(config.data, source, config.model.image_size)
    kind = "proxies" if config.data.proxy else "training images"
    if config.data.retain_images == "generated":
        kind = f"{'proxies' if config.data.proxy else 'noise images'} to generate from"
    logger.info("To forget: %s", splits.describe(sets.forget, "training images"))
    logger.info("To retain: %s", splits.describe(sets.retain, kind))
    warn_of_shrinking(sets.forget, config.model.image_size)
    return sets


def phase_batches(
    config: Config, training: TrainingConfig, sets: Mapping[str, Source], folder: pathlib.Path
) -> TrainingBatches:
    """Make the batches of a phase; its bad images are listed in `folder`."""
    data, size = config.data, config.model.image_size
    if training.batch_size % jax.process_count():
        raise UserError(
            f"batch_size is {training.batch_size}, which is not a multiple of the "
            f"{jax.process_count()} processes: choose a multiple of the number of devices.",
            known_to_all=True,
        )
    retain: TransformConfig = data.proxy_transform if data.proxy else data
    if data.retain_images == "generated":
        retain = TransformConfig(flip=data.flip)  # they are squares of the right size already
    return training_batches(
        sets,
        training.batch_size,
        value_range=config.model.value_range,
        seed=config.seed,
        transforms={
            name: Transform(retain if name == "retain" else data, size, training=True) for name in sets
        },
        options=LoaderOptions(
            folder, data.max_bad_fraction, data.workers, jax.process_index(), jax.process_count()
        ),
    )


def phase_seed(seed: int, index: int) -> int:
    """Return different seeds for the phases of a run, and for neighboring seeds of runs."""
    return (seed * 2003 + index) % 2**31
