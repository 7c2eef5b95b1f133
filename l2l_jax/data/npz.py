"""Images in a NumPy file: arrays of a notebook, or a data set that was saved as one."""

import zipfile
from collections.abc import Mapping

import numpy as np

from l2l_jax.data.config import SourceConfig
from l2l_jax.data.files import existing
from l2l_jax.data.records import ArraySource, SplitName, Subset, held_out
from l2l_jax.errors import UserError

WANTED = "a .npz file with images [image, height, width, 1 or 3] and labels [image]"


def open_npz(config: SourceConfig, split: SplitName) -> Subset:
    """Open the images of a split.

    The file holds "images", "labels" (names or numbers of the classes) and, optionally, "test", which is true
    for test images. Without it `config.test_fraction` of each class is held out.

    Raises:
      UserError: The file is missing or damaged, or its arrays do not fit together.
    """
    path = existing(config, WANTED)
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise UserError(f"{config.where}.path={path} cannot be read ({error}); expected {WANTED}.") from None
    images, labels, names = _checked(arrays, f"{config.where}.path={path}")
    source = ArraySource(images, labels, names)
    if "test" in arrays:
        test = np.asarray(arrays["test"], bool)
        return Subset(source, np.flatnonzero(test == (split == "test")))
    kept, held = held_out([b"%d" % i for i in range(len(labels))], labels, config.test_fraction)
    return Subset(source, held if split == "test" else kept)


def _checked(arrays: Mapping[str, np.ndarray], where: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return images, class ids and class names, or raise a UserError that says what does not fit."""
    if missing := {"images", "labels"} - set(arrays):
        raise UserError(f"{where} has no array {min(missing)!r}; expected {WANTED}.")
    images, labels = arrays["images"], arrays["labels"]
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or images.dtype not in (np.uint8, np.float32):
        raise UserError(
            f"{where}: images are {images.dtype} {list(images.shape)}; expected uint8, or float32 in [0, 1], "
            "[image, height, width, 1 or 3]."
        )
    for name in ("labels", "test"):
        if name in arrays and arrays[name].shape != (len(images),):
            raise UserError(
                f"{where}: {name} has shape {arrays[name].shape}, but there are {len(images)} images."
            )
    if images.dtype == np.float32 and not (
        np.isfinite(images).all() and 0 <= images.min() <= images.max() <= 1
    ):
        raise UserError(f"{where}: float images must be in [0, 1].")
    classes, ids = np.unique(labels.astype(str), return_inverse=True)
    return images, ids.astype(np.int64), tuple(classes.tolist())
