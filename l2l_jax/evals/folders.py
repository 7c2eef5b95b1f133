"""Comparison of two folders of images, reconstructions and originals, without a model."""

import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from l2l_jax.data.decoding import ImageError, open_image
from l2l_jax.data.listing import SUFFIXES, Lister
from l2l_jax.errors import UserError
from l2l_jax.evals.features.networks import FeatureNetwork
from l2l_jax.evals.metrics import SetMetrics, measure, metrics_of, observe_pairs
from l2l_jax.utils.io import ResultCache
from l2l_jax.utils.multihost import barrier, from_primary
from l2l_jax.utils.progress import Progress

PAIRED = ("psnr", "ssim", "mse", *metrics_of("clip"))  # metrics that need pairs of image and original
Observed = dict[str, np.ndarray]  # arrays with a leading image axis, by name


class Folder(NamedTuple):
    """Images below a folder: relative paths by the path without its extension."""

    root: pathlib.Path
    files: dict[str, str]


def open_images(root: pathlib.Path, flag: str) -> Folder:
    """Find all images below a folder."""
    if not root.is_dir():
        raise UserError(f"{flag}={root} is not a folder; name one that holds images.")
    lister = Lister(root)
    paths = lister.images("")
    passed_over = lister.report()
    if not paths:
        raise UserError(
            f"{flag}={root} holds no image: no file below it ends in {', '.join(SUFFIXES[:4])}, …"
            + (f" Skipped: {passed_over}." if passed_over else "")
        )
    files: dict[str, str] = {}
    for path in paths:
        name = os.path.splitext(path)[0]
        if name in files:
            raise UserError(f"{flag}={root} holds both {files[name]} and {path}: keep only one {name}.")
        files[name] = path
    return Folder(root, files)


Networks = Mapping[str, FeatureNetwork]


def compare_folders(
    images: Folder, reference: Folder, networks: Networks, stored: pathlib.Path, *, batch_size: int = 64
) -> SetMetrics:
    """Measure reconstructions, `images`, against originals, `reference`.

    If both folders hold the same names, images with the same name are compared: PSNR, MSE and SSIM of whole
    images, and CLIP's cosines. Each process handles a share of the images. Observations are stored in a
    folder, from which a later call resumes; with several hosts it must be on shared storage.

    Raises:
      UserError: An image cannot be decoded, or its size differs from that of its original.
    """
    paired = images.files.keys() == reference.files.keys()
    folders = {"images": (images, reference if paired else None), "reference": (reference, None)}
    read = {}
    for name, (folder, originals) in folders.items():
        root, names = folder.root.resolve(), list(folder.files)
        slug = f"{root.name}-{hashlib.sha256(str(root).encode()).hexdigest()[:16]}-{name}"
        cache = ResultCache(stored / "folders" / slug, {"batch_size": batch_size})
        starts = range(0, len(names), batch_size)
        blocks = {f"{n:05d}": names[first : first + batch_size] for n, first in enumerate(starts)}
        with barrier(), Progress(f"{folder.root}", len(names), unit="image") as progress:
            for block in list(blocks)[jax.process_index() :: jax.process_count()]:
                _observe(cache, block, blocks[block], folder, originals, networks)
                progress.update(len(blocks[block]))
        read[name] = functools.partial(cache.join, list(blocks))
    result = SetMetrics(*from_primary(lambda: measure(read["images"], read["reference"])))
    if not paired:
        different = sorted(images.files.keys() ^ reference.files.keys())
        example = f"in one only: {len(different)}, such as {different[0]}"
        result.missing.update(dict.fromkeys(PAIRED, f"the folders hold different names ({example})"))
        for name in PAIRED:
            result.metrics.pop(name, None)
            result.intervals.pop(name, None)
    return result


def _observe(
    cache: ResultCache, block: str, names: list, folder: Folder, originals: Folder | None, networks: Networks
) -> None:
    """Observe a block of images, paired with their originals if given, unless the result is stored."""
    files = [(folder.root / folder.files[name]).read_bytes() for name in names]
    others = [] if originals is None else [(originals.root / originals.files[n]).read_bytes() for n in names]
    stamp: list[Any] = [hashlib.sha256(encoded).hexdigest() for encoded in (*files, *others)]
    stamp.append({name: dict(network.weights) for name, network in networks.items()})
    if cache.get(block, stamp=stamp, members=()) is not None:
        return
    pixels = list(map(functools.partial(_decode, folder), names, files))

    def observe(chosen: list[int]) -> Observed:
        images = np.stack([pixels[i] for i in chosen])
        return {f"{name}/{k}": x for name, network in networks.items() for k, x in network(images).items()}

    observed = _by_shape(pixels, observe)
    if originals is not None:
        truths = list(map(functools.partial(_decode, originals), names, others))
        for name, image, truth in zip(names, pixels, truths, strict=True):
            if image.shape != truth.shape:
                (height, width, _), (other_height, other_width, _) = image.shape, truth.shape
                raise UserError(
                    f"{folder.root / folder.files[name]} has {width}×{height} pixels and its original "
                    f"{other_width}×{other_height}: images of one name must have one size."
                )

        def compare(chosen: list[int]) -> Observed:
            unit = (np.stack([np.float32(1 / 255) * x[i] for i in chosen]) for x in (truths, pixels))
            masks = np.ones((len(chosen), *pixels[chosen[0]].shape[:2]), bool)  # whole images
            return observe_pairs(next(unit), next(unit), masks, (0.0, 1.0))

        observed |= _by_shape(pixels, compare)
    cache.put(block, observed, stamp=stamp)


def _by_shape(pixels: Sequence[np.ndarray], observe: Callable[[list[int]], Observed]) -> Observed:
    """Observe the images of each shape together and return the results in the order of the images.

    Observations that some shapes lack (SSIM of small images) are left out.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, image in enumerate(pixels):
        groups.setdefault(image.shape, []).append(number)
    parts = [observe(chosen) for chosen in groups.values()]
    order = np.argsort(np.concatenate(list(groups.values())))
    common = set.intersection(*(set(part) for part in parts))
    return {key: np.concatenate([part[key] for part in parts])[order] for key in parts[0] if key in common}


def _decode(folder: Folder, name: str, encoded: bytes) -> np.ndarray:
    try:
        return open_image(encoded).pixels()
    except ImageError as error:
        raise UserError(f"{folder.root / folder.files[name]} cannot be decoded ({error}).") from error
