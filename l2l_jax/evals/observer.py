"""Per-image observations of originals and reconstructions, stored by block of images."""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image

from l2l_jax.evals.features.networks import FeatureNetwork
from l2l_jax.evals.image_set import Block
from l2l_jax.evals.inpaint import Inpainter
from l2l_jax.evals.metrics import observe_pairs, to_uint8
from l2l_jax.models.base import Params
from l2l_jax.utils.io import ResultCache, atomic_file

SKIPPED_NAMES, SKIPPED_REASONS, WRITTEN = "skipped/names", "skipped/reasons", "written"
# Names of arrays stored with the observations of a block
SHOWN_PLACES, SHOWN_IMAGES = "shown/places", "shown/images"
MASKED = "masked"  # network name of the classifier of the masked region
PNG_THREADS = 4


class EvaluatedModel(NamedTuple):
    """Parameters on the devices, a name for folders, and the observations of reconstructions."""

    params: Params
    name: str
    cache: ResultCache


@dataclasses.dataclass(frozen=True)
class Observer:
    """An observer of blocks of a set that stores its results; networks have entries of their own."""

    originals: ResultCache  # observations of originals, for all models
    images: pathlib.Path | None  # folder for PNG files; None: no files are written
    networks: Mapping[str, FeatureNetwork]  # feature networks of whole images, by name
    # Classifiers of the masked region by task name; None for tasks without one
    classifiers: Mapping[str, FeatureNetwork | None]
    class_names: Sequence[str]  # class names by class ID

    def observe(
        self, model: EvaluatedModel, inpainter: Inpainter, set_name: str, block: Block, shown: Collection[int]
    ) -> None:
        """Inpaint a block of images and store observations of originals and reconstructions.

        `shown` are the indices in the set of the example images, whose reconstructions are also stored.
        """
        good, task, number = block.good, inpainter.task.name, block.number
        pixels = functools.cache(lambda: to_uint8(good.images, inpainter.value_range))
        classifier = self.classifiers[task]
        masked = {} if classifier is None else {MASKED: classifier}
        for kind, networks in (("whole", self.networks), (task, masked)):
            _Networks(self.originals, f"{kind}/{set_name}", block, networks).apply(pixels)
        files = [  # such as 00012-cat.png
            f"{index:05d}-{re.sub(r'[^A-Za-z0-9_]+', '_', str(self.class_names[label]))[:40]}.png"
            for index, label in zip(good.indices, good.labels, strict=True)
        ]
        if self.images is not None:
            folder = self.images / set_name / "original"
            if not _all_there(folder, files):
                _write_images(folder, files, pixels())

        prefix, examples = f"{task}/{set_name}", [int(index) for index in good.indices if index in shown]
        stamp = [block.digest, examples]
        stored = model.cache.get(entry(prefix, number), stamp=stamp, members=(WRITTEN,))
        later = _Networks(model.cache, prefix, block, {**self.networks, **masked})
        written = None if self.images is None else self.images / set_name / task / model.name
        if stored is not None and (written is None or _all_there(written, files)):
            if not later.missing:
                return
            if written is not None and stored[WRITTEN]:
                files_there = [written / name for name in files]
                later.apply(lambda: np.stack([np.asarray(Image.open(path)) for path in files_there]))
                return
        inpainted = inpainter(model.params, good, set_name)
        inpainted_pixels = to_uint8(inpainted, inpainter.value_range)
        if written is not None:
            _write_images(written, files, inpainted_pixels)
        masks = inpainter.masks(set_name, good.indices)
        observed = observe_pairs(good.images, inpainted, masks, inpainter.value_range) | {
            "labels": np.asarray(good.labels, np.int64),
            SKIPPED_NAMES: np.array(list(block.skipped), str),
            SKIPPED_REASONS: np.array(list(block.skipped.values()), str),
            WRITTEN: np.array(written is not None),
            SHOWN_PLACES: np.array(examples, int),
            SHOWN_IMAGES: inpainted[np.isin(good.indices, examples)],
        }
        model.cache.put(entry(prefix, number), observed, stamp=stamp)
        later.apply(lambda: inpainted_pixels)


class _Networks:
    """The networks whose outputs for a block are not stored yet, or were computed with other weights."""

    def __init__(self, cache: ResultCache, prefix: str, block: Block, networks: Mapping[str, FeatureNetwork]):
        self._cache, self._empty = cache, not len(block.good.labels)
        self.missing = []
        for name, network in networks.items():
            key, stamp = entry(prefix, block.number, name), [block.digest, dict(network.weights)]
            if cache.get(key, stamp=stamp, members=()) is None:
                self.missing.append((network, key, stamp))

    def apply(self, pixels: Callable[[], np.ndarray]) -> None:
        """Compute and store the outputs of the missing networks for uint8 images."""
        for network, key, stamp in self.missing:
            self._cache.put(key, {} if self._empty else network(pixels()), stamp=stamp)


def entry(prefix: str, number: int, network: str = "") -> str:
    """Return the name of the cache entry of a block, or of a network's outputs for the block."""
    return f"{prefix}/{number:05d}" + (f"-{network}" if network else "")


def _all_there(folder: pathlib.Path, names: Iterable[str]) -> bool:
    return all((folder / name).exists() for name in names)


def _write_images(folder: pathlib.Path, files: Sequence[str], pixels: np.ndarray) -> None:
    """Write PNG files atomically."""
    folder.mkdir(parents=True, exist_ok=True)

    def write(name: str, image: np.ndarray) -> None:
        with atomic_file(folder / name) as temporary:
            Image.fromarray(image).save(temporary, "PNG", compress_level=1)

    with ThreadPoolExecutor(PNG_THREADS) as pool:
        list(pool.map(write, files, pixels))
