"""Images that the original model generates, to replace retain images that are no longer available.

Each image starts as a proxy image or as noise. The model inpaints its right half from the left, then its left
half from the right: nothing remains of the start, and the result follows the distribution of the model's own
reconstructions. Data-free distillation rests on the same idea (Lopes et al. 2017, "Data-Free Knowledge
Distillation for Deep Neural Networks").
"""

import json
import logging
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from l2l_jax.data.arrays import GeneratedImages
from l2l_jax.errors import UserError
from l2l_jax.evals.image_set import ImageSet
from l2l_jax.evals.inpaint import Inpainter
from l2l_jax.evals.metrics import to_uint8
from l2l_jax.evals.tasks import InpaintingTask
from l2l_jax.models.base import Model, Params
from l2l_jax.utils.io import ResultCache, atomic_folder, tree_hash
from l2l_jax.utils.multihost import barrier, from_primary
from l2l_jax.utils.progress import Progress

logger = logging.getLogger(__name__)
HALVES = (InpaintingTask("right", 8), InpaintingTask("left", 8))  # the masked regions, one after the other
IMAGES, CARD = "images.npy", "card.json"


def generate(
    model: Model, params: Params, starts: ImageSet, folder: pathlib.Path, *, batch_size: int, seed: int
) -> GeneratedImages:
    """Generate images with a model, unless the folder holds them already.

    All processes and their devices share the work, and the folder. An image depends on its start, its place
    and the seed. Starts that cannot be decoded are left out. Interrupted work resumes.

    Raises:
      UserError: The folder holds the images of other weights, or too many starts cannot be decoded.
    """
    weights = tree_hash({part: params[part] for part in model.generative_parts})
    key = {"weights": weights, "batch_size": batch_size, "seed": seed}
    path = folder / CARD
    card = from_primary(lambda: json.loads(path.read_text("utf-8")) if path.exists() else None)
    if card is None:
        card = _generate(model, params, starts, folder, key)
    elif card["weights"] != weights:
        raise UserError(
            f"{folder} holds images that another original model made. Use another --workdir, or delete that "
            "folder to have them made again."
        )
    return GeneratedImages(folder / IMAGES, card["images"])


def _generate(
    model: Model, params: Params, starts: ImageSet, folder: pathlib.Path, key: Mapping[str, Any]
) -> dict[str, Any]:
    """Generate the blocks that are missing, then join all into one file."""
    cache = ResultCache(folder.with_name(folder.name + ".blocks"), key)
    batch_size, share = key["batch_size"], slice(jax.process_index(), None, jax.process_count())
    seeds = enumerate(HALVES, key["seed"])
    inpainters = [Inpainter(model, half, batch_size=batch_size, seed=seed) for seed, half in seeds]
    placed = inpainters[0].place(params)
    total = -(-len(starts) // jax.process_count())
    with barrier(), Progress("generate retain images", total, unit="image") as progress:
        for block in starts.blocks(batch_size, share):
            if cache.get(_name(block.number), stamp=block.digest) is None:
                images = block.good
                for inpainter in inpainters:
                    images = images._replace(images=inpainter(placed, images, "generated"))
                pixels = to_uint8(images.images, model.value_range)
                cache.put(_name(block.number), {"images": pixels}, stamp=block.digest)
            progress.update(block.size)
    shape = (len(starts), *model.image_shape)
    card = from_primary(lambda: _join(folder, cache, shape, key))
    logger.info("The original model has generated %d images in place of retain images", card["images"])
    return card


def _join(folder: pathlib.Path, cache: ResultCache, shape: tuple[int, ...], key: Any) -> dict[str, Any]:
    """Write the images of all blocks to one file, and the card; delete the blocks."""
    with atomic_folder(folder) as temporary:
        file = np.lib.format.open_memmap(temporary / IMAGES, mode="w+", dtype=np.uint8, shape=shape)
        written = 0
        for number in range(-(-shape[0] // key["batch_size"])):
            images = cache.join([_name(number)], "images")
            assert images is not None, "all blocks are there"
            file[written : written + len(images)] = images
            written += len(images)
        file.flush()
        card = {**key, "images": written}
        (temporary / CARD).write_text(json.dumps(card, indent=2) + "\n", "utf-8")
    shutil.rmtree(cache.folder)
    return card


def _name(number: int) -> str:
    return f"{number:06d}"
