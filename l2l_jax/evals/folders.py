"""Two folders of images compared without any model: what was restored, and the originals."""

import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from l2l_jax.data.decoding import ImageError, open_image
from l2l_jax.data.listing import SUFFIXES, Lister
from l2l_jax.errors import UserError
from l2l_jax.evals.block_store import BlockStore
from l2l_jax.evals.features.base import FeatureNetwork
from l2l_jax.evals.figures import (
    Observed,
    SetFigures,
    figures_of,
    measure,
    observe_images,
    observe_pairs,
)
from l2l_jax.utils.multihost import barrier, from_primary, on_primary
from l2l_jax.utils.progress import Progress

PAIRED = ("psnr", "ssim", "mse", *figures_of("clip"))
"""Figures that need an image's own original."""


class Folder(NamedTuple):
    """The images below a folder.

    Attributes:
      root: the folder.
      files: paths below it by what they are called: the path without its ending; in the order of names.
    """

    root: pathlib.Path
    files: dict[str, str]


def open_images(root: pathlib.Path, flag: str) -> Folder:
    """All images below a folder.

    Raises:
      UserError: no folder, no image in it, or two images of one name.
    """
    if not root.is_dir():
        raise UserError(f"{flag}={root} is not a folder; name one that holds images.")
    lister = Lister(root)
    found = lister.images("")
    passed_over = lister.report()
    if not found:
        raise UserError(
            f"{flag}={root} holds no image: no file below it ends in {', '.join(SUFFIXES[:4])}, …"
            + (f" Passed over: {passed_over}." if passed_over else "")
        )
    files: dict[str, str] = {}
    for path in found:
        name = os.path.splitext(path)[0]
        if name in files:
            raise UserError(f"{flag}={root} holds both {files[name]} and {path}: which of them is {name}?")
        files[name] = path
    return Folder(root, files)


def compare_folders(
    images: Folder,
    reference: Folder,
    networks: Mapping[str, FeatureNetwork],
    kept: pathlib.Path,
    *,
    batch_size: int = 64,
) -> SetFigures:
    """The figures of restored images, `images`, against originals, `reference`.

    Where both folders hold the same names, images of one name are compared with one another: PSNR, MSE and
    SSIM of whole images, and CLIP's cosines. All processes take a share of the images.

    Args:
      images, reference: the folders.
      networks: feature networks by name.
      kept: folder for observations, so that a later call resumes; on storage that all hosts share.
      batch_size: images that are observed, and kept, together.

    Raises:
      UserError: an image that cannot be decoded, or is not of its original's size.
    """
    paired = images.files.keys() == reference.files.keys()
    stores = {"images": (images, None), "reference": (reference, None)}
    if paired:
        stores["images"] = (images, reference)
    facts = {name: dict(network.weights) for name, network in networks.items()}
    read = {}
    for name, (folder, originals) in stores.items():
        root = hashlib.sha256(str(folder.root.resolve()).encode()).hexdigest()[:16]
        store = BlockStore(kept / "folders" / f"{folder.root.resolve().name}-{root}-{name}")
        blocks = _blocks(list(folder.files), batch_size)
        on_primary(functools.partial(store.claim, {"batch_size": batch_size}))
        with barrier(), Progress(f"{folder.root}", len(folder.files), unit="image") as progress:
            for block in list(blocks)[jax.process_index() :: jax.process_count()]:
                _observe(store, block, blocks[block], folder, originals, networks, facts)
                progress.update(len(blocks[block]))
        read[name] = functools.partial(store.join, list(blocks))
    result = SetFigures(*from_primary(lambda: measure(read["images"], read["reference"])))
    if not paired:
        different = sorted(images.files.keys() ^ reference.files.keys())
        reason = (
            f"the folders hold different names ({len(different)} are in one only, such as {different[0]})"
        )
        result.missing.update(dict.fromkeys(PAIRED, reason))
        for name in PAIRED:
            result.figures.pop(name, None)
            result.intervals.pop(name, None)
    return result


def _blocks(names: Sequence[str], size: int) -> dict[str, Sequence[str]]:
    return {f"{n:05d}": names[first : first + size] for n, first in enumerate(range(0, len(names), size))}


def _observe(store, block, names, folder, originals, networks, facts) -> None:
    """Observe a block of images, and against their originals if there are any, unless it was done before."""
    files = [_read(folder, name) for name in names]
    others = None if originals is None else [_read(originals, name) for name in names]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for encoded in (*files, *(others or ())):
        digest.update(hashlib.sha256(encoded).digest())
    if store.has(block, digest.hexdigest()):
        return
    pixels = [_decode(folder, name, file) for name, file in zip(names, files, strict=True)]
    observed = _by_shape(pixels, lambda chosen: observe_images(networks, _stack(pixels, chosen)))
    if others is not None:
        truths = [_decode(originals, name, file) for name, file in zip(names, others, strict=True)]
        _check_sizes(folder, names, pixels, truths)
        observed |= _by_shape(pixels, lambda chosen: _pairs(_stack(truths, chosen), _stack(pixels, chosen)))
    store.save(block, digest.hexdigest(), observed)


def _pairs(originals: np.ndarray, restored: np.ndarray) -> Observed:
    unit = [np.float32(1 / 255) * x for x in (originals, restored)]
    return observe_pairs(*unit, np.ones(originals.shape[:3], bool), (0.0, 1.0))


def _stack(pixels: Sequence[np.ndarray], chosen: Sequence[int]) -> np.ndarray:
    return np.stack([pixels[i] for i in chosen])


def _by_shape(pixels: Sequence[np.ndarray], observe: Callable[[list[int]], Observed]) -> Observed:
    """What `observe` finds of images of one shape at a time, put together in their order.

    What is not found of every shape (SSIM of small images) is left out.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, image in enumerate(pixels):
        groups.setdefault(image.shape, []).append(number)
    parts = [observe(chosen) for chosen in groups.values()]
    order = np.argsort(np.concatenate(list(groups.values())))
    common = set.intersection(*(set(part) for part in parts))
    return {
        name: np.concatenate([part[name] for part in parts])[order] for name in parts[0] if name in common
    }


def _read(folder: Folder, name: str) -> bytes:
    return (folder.root / folder.files[name]).read_bytes()


def _decode(folder: Folder, name: str, encoded: bytes) -> np.ndarray:
    try:
        return open_image(encoded).pixels()
    except ImageError as error:
        raise UserError(f"{folder.root / folder.files[name]} cannot be decoded ({error}).") from error


def _check_sizes(folder: Folder, names: Sequence[str], pixels: Any, truths: Any) -> None:
    for name, image, truth in zip(names, pixels, truths, strict=True):
        if image.shape != truth.shape:
            sizes = [f"{shape[1]}×{shape[0]}" for shape in (image.shape, truth.shape)]
            raise UserError(
                f"{folder.root / folder.files[name]} has {sizes[0]} pixels and its original {sizes[1]}: "
                "images of one name must have one size."
            )
