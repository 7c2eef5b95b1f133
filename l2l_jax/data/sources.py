"""Construction of image sources from their config."""

import hashlib
from collections.abc import Callable

import numpy as np

from l2l_jax.data.arrays import open_digits, open_fashion, open_idx, open_npz
from l2l_jax.data.config import SourceConfig
from l2l_jax.data.files import THREADS, open_csv, open_folder
from l2l_jax.data.records import Source, SplitName, Subset, hold_out
from l2l_jax.data.tfds_source import open_tfds
from l2l_jax.errors import UserError
from l2l_jax.utils.threads import DaemonPool

OPENERS: dict[str, Callable[[SourceConfig, SplitName], Source]] = {
    "folder": open_folder,
    "csv": open_csv,
    "idx": open_idx,
    "npz": open_npz,
}
"""Functions that open sources of user files."""


def open_source(config: SourceConfig, split: SplitName, image_size: int) -> Source:
    """Open the training, validation or test images of a source.

    Validation images are the fraction `config.validation_fraction` of the source's training images.

    `image_size` is the side in pixels of images that are not stored as files (the digits).

    Raises:
      UserError: The source does not exist, is not found at `config.path`, or holds no images.
    """
    try:
        source = _open(config, "test" if split == "test" else "train", image_size)
    except OSError as error:
        place = error.filename or config.path
        raise UserError(f"{config.where}: {place} cannot be read ({error.strerror or error}).") from error
    share = config.validation_fraction
    if split == "test" or (split == "train" and not share):
        return source
    if not share:
        raise UserError(
            f"{config.where}.validation_fraction is 0, so there are no validation images; 0.1 would reserve "
            "one training image in ten."
        )
    return Subset(source, hold_out(source.labels, share, held=split == "validation", names=source.paths))


def _open(config: SourceConfig, split: SplitName, image_size: int) -> Source:
    if config.source in OPENERS:
        return OPENERS[config.source](config, split)
    if config.source not in ("digits", "fashion"):
        return open_tfds(config, split)
    if config.path:
        raise UserError(
            f"{config.where}.path is {config.path!r}, but the source {config.source!r} reads no files; "
            "for your own images, use the source 'folder', 'csv', 'idx' or 'npz'."
        )
    return open_digits(split, image_size) if config.source == "digits" else open_fashion(split)


def source_digest(source: Source) -> str:
    """Return a SHA-256 of the images of a source: their names, sizes, classes and order.

    It does not depend on the folder of the images. No file is read.
    """

    def digest(indices: np.ndarray) -> bytes:
        parts = hashlib.sha256()
        for index in map(int, indices):
            name = source.class_names[source.labels[index]].encode("utf-8", "surrogateescape")
            parts.update(source.key(index) + b"\0" + name + b"\0")
        return parts.digest()

    with DaemonPool(THREADS) as pool:
        chunks = np.array_split(np.arange(len(source)), THREADS)
        return hashlib.sha256(b"".join(pool.map(digest, chunks))).hexdigest()
