"""Images of an evaluation as PNG files with names that do not change from run to run."""

import pathlib
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

THREADS = 4


def file_names(places: Iterable[int], labels: Iterable[int], class_names: Sequence[str]) -> list[str]:
    """Names of the files of some images: their place in the set and their class, `00012-cat.png`."""
    return [
        f"{place:05d}-{re.sub(r'[^A-Za-z0-9_]+', '_', str(class_names[label]))[:40]}.png"
        for place, label in zip(places, labels, strict=True)
    ]


def write_images(folder: pathlib.Path, names: Sequence[str], images: np.ndarray) -> None:
    """Write images; each file appears whole or not at all.

    Args:
      folder: where to; made if need be.
      names: of the files.
      images: uint8 `[image, height, width, 3]`.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def write(name, pixels):
        unfinished = folder / f".{name}.unfinished"
        Image.fromarray(pixels).save(unfinished, "PNG", compress_level=1)
        unfinished.replace(folder / name)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(write, names, images))


def all_there(folder: pathlib.Path, names: Iterable[str]) -> bool:
    """Whether all these files exist."""
    return all((folder / name).exists() for name in names)


def read_images(folder: pathlib.Path, names: Sequence[str]) -> np.ndarray:
    """What `write_images` wrote, uint8 `[image, height, width, 3]`."""
    return np.stack([np.asarray(Image.open(folder / name)) for name in names])
