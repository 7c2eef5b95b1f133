"""Grayscale images in IDX files, the format of MNIST and Fashion-MNIST."""

import gzip
import lzma
import zlib
from collections.abc import Callable

import numpy as np
from etils import epath

from l2l_jax.data.config import SourceConfig
from l2l_jax.data.files import existing
from l2l_jax.data.records import ArraySource, SplitName
from l2l_jax.errors import UserError

PREFIXES = {"train": ("train",), "test": ("t10k", "test")}
"""First words of the file names of a split."""

DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.decompress,
    ".xz": lzma.decompress,
}

UBYTE = 8
"""Type code of unsigned bytes in a magic number; the number of dimensions follows it."""


def open_idx(config: SourceConfig, split: SplitName) -> ArraySource:
    """Open the images of a split in a folder of IDX files; classes are named by their numbers.

    Raises:
      UserError: A file is missing, damaged, or not an IDX file, or images and labels differ in number.
    """
    wanted = "a folder with train-images-idx3-ubyte[.gz] and the three other files of MNIST"
    folder = existing(config, wanted)
    if not folder.is_dir():
        raise UserError(f"{config.where}.path={config.path} is a file, but the source 'idx' needs {wanted}.")
    images, labels = read_split(folder, split)
    classes = max(int(labels.max()), int(read_idx(_find(folder, "train", "labels"), 1).max())) + 1
    return ArraySource(images, labels, [str(number) for number in range(classes)], split)


def read_split(folder: epath.Path, split: SplitName) -> tuple[np.ndarray, np.ndarray]:
    """Read the images `[image, height, width]` and labels `[image]` of a split, uint8.

    Raises:
      UserError: See `open_idx`.
    """
    paths = _find(folder, split, "images"), _find(folder, split, "labels")
    images, labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
    if len(images) != len(labels):
        raise UserError(
            f"{paths[0]} holds {len(images)} images, but {paths[1].name} holds {len(labels)} labels; "
            "expected equally many."
        )
    if not images.size:
        raise UserError(f"{paths[0]} holds no pixels: its dimensions are {images.shape}.")
    return images, labels


def read_idx(path: epath.Path, dimensions: int) -> np.ndarray:
    """Read an IDX file of unsigned bytes, compressed by gzip or xz if its ending says so.

    Args:
      path: The file.
      dimensions: Number of dimensions of its array.

    Raises:
      UserError: It cannot be decompressed, or is not such a file.
    """
    try:
        content = DECOMPRESS[path.suffix if path.suffix in DECOMPRESS else ""](path.read_bytes())
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        reason = str(error).rstrip(".")
        raise UserError(f"{path} cannot be decompressed ({reason}); fetch or copy it again.") from None
    magic, header = int.from_bytes(content[:4]), 4 + 4 * dimensions
    expected = UBYTE * 256 + dimensions
    if magic != expected or len(content) < header:
        raise UserError(
            f"{path} starts with the magic number {magic}, but an IDX file with {dimensions} "
            f"dimension{'s' * (dimensions > 1)} of bytes starts with {expected}."
        )
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", dimensions, 4))
    values = np.frombuffer(content, np.uint8, offset=header)
    if len(values) != np.prod(shape, dtype=np.int64):
        raise UserError(
            f"{path} has {len(values)} bytes after its header, which announces "
            f"{' × '.join(map(str, shape))}; fetch or copy it again."
        )
    return values.reshape(shape)


def _find(folder: epath.Path, split: SplitName, kind: str) -> epath.Path:
    """Find the file of a split: "images" or "labels"."""
    ending = {"images": "idx3-ubyte", "labels": "idx1-ubyte"}[kind]
    for prefix in PREFIXES[split]:
        for name in (f"{prefix}-{kind}-{ending}", f"{prefix}-{kind}.{ending}"):
            for compressed in DECOMPRESS:
                if (folder / (name + compressed)).exists():
                    return folder / (name + compressed)
    raise UserError(f"{folder} has no file {PREFIXES[split][0]}-{kind}-{ending}, with or without .gz.")
