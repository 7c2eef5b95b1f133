"""Observing originals and restorations of one block of images, and keeping what was observed on the disk."""

import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from l2l_jax.evals import png_files
from l2l_jax.evals.block_store import BlockStore
from l2l_jax.evals.features.base import FeatureNetwork
from l2l_jax.evals.features.digits import MaskClassifier
from l2l_jax.evals.figures import Observed, observe_classes, observe_images, observe_pairs
from l2l_jax.evals.image_set import Block
from l2l_jax.evals.inpaint import Restorer
from l2l_jax.evals.metrics import to_uint8
from l2l_jax.models.base import Params

NETWORKS, SKIPPED, WRITTEN = "networks", "skipped", "written"
SHOWN_PLACES, SHOWN_IMAGES = "shown/places", "shown/images"
"""Names of what is kept beside the observations."""


class Model(NamedTuple):
    """A model that is evaluated.

    Attributes:
      params: its parameters, placed on the devices.
      name: as a name of folders.
    """

    params: Params
    name: str


class Observer:
    """Observes blocks of a set; what is there already is not done again.

    Args:
      folder: of all that is kept; on storage that all hosts share.
      networks: feature networks by name.
      classifiers: by name of the task: who reads classes from its mask, if anybody.
      class_names: names of the class ids.
      write_images: write PNG files, too.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        networks: Mapping[str, FeatureNetwork],
        classifiers: Mapping[str, MaskClassifier | None],
        class_names: Sequence[str],
        *,
        write_images: bool,
    ):
        self._folder, self._networks, self._classifiers = folder, networks, classifiers
        self._class_names, self._write = class_names, write_images
        self._facts = {name: digest(dict(network.weights)) for name, network in networks.items()}

    def observe(self, model: Model, restorer: Restorer, of: str, block: Block, shown: Sequence[int]) -> None:
        """Restore a block of images and keep what is observed of originals and restorations.

        Args:
          model: restores.
          restorer: of the task.
          of: name of the set.
          block: its images.
          shown: places of the images whose restorations are kept for pictures.
        """
        pixels = functools.cache(lambda: to_uint8(block.good.images, restorer.value_range))
        task = restorer.task.name
        self._observe_originals(originals_of(self._folder, of), of, block, pixels)
        self._observe_masks(originals_of(self._folder, of, task), task, block, pixels)
        if not len(block.good.labels):
            self._keep_empty(model, task, of, block)
            return
        store = restored_of(self._folder, model.name, task, of)
        places = [int(place) for place in block.good.indices if place in set(shown)]
        fingerprint = digest(block.digest, places)
        files = png_files.file_names(block.good.indices, block.good.labels, self._class_names)
        folder = self._folder / "images" / of / task / model.name
        written = png_files.all_there(folder, files)
        if store.has(block_name(block), fingerprint) and (written or not self._write):
            kept = store.load(block_name(block), NETWORKS, WRITTEN)
            lacking = self._lacking(kept)
            if not lacking:
                return
            if written and kept[WRITTEN]:  # networks that came later see the files
                observed = store.load(block_name(block))
                self._complete(observed, lacking, task, block, png_files.read_images(folder, files))
                store.save(block_name(block), fingerprint, observed)
                return
        observed = self._restore(model, restorer, of, block, places, folder, files)
        store.save(block_name(block), fingerprint, observed)

    def _restore(self, model, restorer, of, block, places, folder, files) -> Observed:
        """Restore a block and observe it."""
        good = block.good
        restored = restorer(model.params, good.images, of, good.indices)
        pixels = to_uint8(restored, restorer.value_range)
        if self._write:
            png_files.write_images(folder, files, pixels)
        observed = {
            SKIPPED: np.array(json.dumps(block.skipped)),
            WRITTEN: np.array(self._write),
            SHOWN_PLACES: np.array(places, int),
            SHOWN_IMAGES: restored[np.isin(good.indices, places)],
        }
        masks = restorer.masks(of, good.indices)
        observed |= observe_pairs(good.images, restored, masks, restorer.value_range)
        self._complete(observed, list(self._networks), restorer.task.name, block, pixels)
        return observed

    def _complete(self, observed: Observed, lacking: Sequence[str], task: str, block: Block, pixels) -> None:
        """Add what the networks `lacking` and the classifier of masks say of restorations."""
        for name in [key for key in observed if key.partition("/")[0] in self._facts | {"correct": ""}]:
            if name == "correct" or name.partition("/")[0] in lacking:
                del observed[name]
        observed |= observe_images({name: self._networks[name] for name in lacking}, pixels)
        observed |= observe_classes(self._classifiers[task], pixels, block.good.labels)
        observed[NETWORKS] = np.array(json.dumps(self._facts))

    def _lacking(self, kept: Observed) -> list[str]:
        """Networks that have not seen a block, or had other weights."""
        facts = json.loads(str(kept[NETWORKS]))
        return [name for name, fact in self._facts.items() if facts.get(name) != fact]

    def _keep_empty(self, model: Model, task: str, of: str, block: Block) -> None:
        store = restored_of(self._folder, model.name, task, of)
        store.save(block_name(block), block.digest, {SKIPPED: np.array(json.dumps(block.skipped))})

    def _observe_originals(self, store: BlockStore, of: str, block: Block, pixels: Callable) -> None:
        """Observe originals with all networks, once for all models and tasks, and write them."""
        files = png_files.file_names(block.good.indices, block.good.labels, self._class_names)
        folder = self._folder / "images" / of / "original"
        if self._write and not png_files.all_there(folder, files):
            png_files.write_images(folder, files, pixels())
        fingerprint = digest(block.digest, self._facts)
        if not store.has(block_name(block), fingerprint):
            observed = observe_images(self._networks, pixels()) if files else {}
            store.save(block_name(block), fingerprint, observed)

    def _observe_masks(self, store: BlockStore, task: str, block: Block, pixels: Callable) -> None:
        """Observe how the classes of originals are read from a task's mask, once for all models."""
        fingerprint = digest(block.digest, self._facts)
        if not store.has(block_name(block), fingerprint):
            labels = block.good.labels
            observed = observe_classes(self._classifiers[task], pixels(), labels) if len(labels) else {}
            store.save(block_name(block), fingerprint, observed)


def restored_of(folder: pathlib.Path, model: str, task: str, of: str) -> BlockStore:
    """What is kept of a model's restorations."""
    return BlockStore(folder / "restored" / model / task / of)


def originals_of(folder: pathlib.Path, of: str, task: str = "whole") -> BlockStore:
    """What is kept of originals: by the networks or, of a task, by the classifier of its mask."""
    return BlockStore(folder / "originals" / task / of)


def block_name(block: Block) -> str:
    """The name of a block in its stores."""
    return f"{block.number:05d}"


def digest(*facts: Any) -> str:
    """SHA-256 of JSON-able facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
