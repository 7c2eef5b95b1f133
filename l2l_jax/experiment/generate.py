"""Images that the original model makes up, to replace retain images that nobody has any more.

A model shows what it knows in what it restores. Each image starts as a proxy image or as noise. The model
restores its right half from the left, then its left half from the right: nothing is left of what it started
from, and the result lies where the model's own restorations lie. Data-free distillation rests on the same
idea (Lopes et al. 2017, "Data-Free Knowledge Distillation for Deep Neural Networks").
"""

import json
import logging
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from l2l_jax.data.generated import GeneratedImages
from l2l_jax.errors import UserError
from l2l_jax.evals.block_store import BlockStore
from l2l_jax.evals.image_set import ImageSet
from l2l_jax.evals.inpaint import Restorer
from l2l_jax.evals.metrics import to_uint8
from l2l_jax.evals.tasks import Task
from l2l_jax.models.base import Model, Params
from l2l_jax.utils.multihost import barrier, from_primary, on_primary
from l2l_jax.utils.progress import Progress
from l2l_jax.weights.saved_models import fingerprint

logger = logging.getLogger(__name__)

HALVES = (Task("right", 8), Task("left", 8))
"""What is hidden, one after the other."""

IMAGES, CARD, BLOCKS = "images.npy", "card.json", "blocks"


def generate(
    model: Model, params: Params, starts: ImageSet, folder: pathlib.Path, *,
    batch_size: int, seed: int,
) -> GeneratedImages:  # fmt: skip
    """Images that a model makes, kept in a folder; what lies there is not made again.

    All processes and their devices share the work. An image depends on its start, its place and the seed.
    Interrupted work resumes where it was.

    Args:
      model: the model.
      params: its parameters, all parts.
      starts: the images to start from; those that cannot be decoded are left out.
      folder: where to, on storage that all hosts share; made.
      batch_size: images per compiled call.
      seed: of any sampling.

    Raises:
      UserError: the folder holds the images of other weights, or too many starts cannot be decoded.
    """
    key = {"weights": fingerprint(params, model.generative_parts), "batch_size": batch_size, "seed": seed}
    card = from_primary(lambda: _card(folder))
    if card is None:
        card = _make(model, params, starts, folder, key)
    elif card["weights"] != key["weights"]:
        raise UserError(
            f"{folder} holds images that another original model made. Use another --workdir, or delete that "
            "folder to have them made again."
        )
    return GeneratedImages(folder / IMAGES, card["images"])


def _card(folder: pathlib.Path) -> dict[str, Any] | None:
    """Facts about finished work; None if there is none."""
    path = folder / CARD
    return json.loads(path.read_text()) if path.exists() else None


def _make(
    model: Model, params: Params, starts: ImageSet, folder: pathlib.Path, key: Mapping[str, Any]
) -> dict[str, Any]:
    """Make the blocks that are missing, then put all into one file."""
    unfinished = folder.with_name(folder.name + ".unfinished")
    store = BlockStore(unfinished / BLOCKS)
    on_primary(lambda: store.claim(key))
    batch_size, share = key["batch_size"], slice(jax.process_index(), None, jax.process_count())
    restorers = [
        Restorer(model, half, batch_size=batch_size, seed=key["seed"] + number)
        for number, half in enumerate(HALVES)
    ]
    placed = restorers[0].place(params)
    total = -(-len(starts) // jax.process_count())
    with barrier(), Progress("generate retain images", total, unit="image") as progress:
        for block in starts.blocks(batch_size, share):
            if not store.has(_name(block.number), block.digest):
                images, places = block.good.images, block.good.indices
                for restorer in restorers if len(places) else ():
                    images = restorer(placed, images, "generated", places)
                pixels = to_uint8(images, model.value_range)
                store.save(_name(block.number), block.digest, {"images": pixels})
            progress.update(block.size)
    shape = (len(starts), *model.image_shape)
    card = from_primary(lambda: _joined(unfinished, store, shape, key))
    on_primary(lambda: os.replace(unfinished, folder))
    logger.info("The original model has made %d images in place of retain images", card["images"])
    return card


def _joined(
    folder: pathlib.Path, store: BlockStore, shape: tuple[int, ...], key: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the images of all blocks to one file, and the card; the blocks go."""
    file = np.lib.format.open_memmap(folder / IMAGES, mode="w+", dtype=np.uint8, shape=shape)
    written = 0
    for number in range(-(-shape[0] // key["batch_size"])):
        images = store.load(_name(number))["images"]
        file[written : written + len(images)] = images
        written += len(images)
    file.flush()
    card = {**key, "images": written}
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n")
    shutil.rmtree(folder / BLOCKS)
    return card


def _name(number: int) -> str:
    return f"{number:06d}"
