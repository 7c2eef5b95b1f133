"""Images in files of the user's own: a folder of class folders, or a table of paths."""

import functools
import logging
import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from etils import epath

from l2l_jax.data.class_names import readable
from l2l_jax.data.config import SourceConfig
from l2l_jax.data.listing import SUFFIXES, Lister, log_once
from l2l_jax.data.records import Record, SplitName, held_out
from l2l_jax.errors import UserError
from l2l_jax.utils.threads import DaemonPool

TEST_FOLDERS = ("test", "val", "valid", "validation")
"""Names of the folder or the split of test images, besides "train"."""

MADE_LOCALLY = "data/local"
"""Folder that `l2l_jax.data.make_local` makes."""

THREADS = 16
"""Threads that look at files, whose storage may be slow."""


class FileSource:
    """Image files, a class id for each.

    Args:
      root: Folder that the paths are relative to; may be remote.
      paths: Paths of the files, as bytes: names need not be UTF-8.
      labels: Class ids.
      class_names: Names of the class ids.
      passed_over: Files that were listed but are not read, in words.
    """

    def __init__(
        self,
        root: str,
        paths: Sequence[bytes] | np.ndarray,
        labels: np.ndarray,
        class_names: Sequence[str],
        passed_over: str = "",
    ):
        self.root, self.passed_over = root, passed_over
        self.paths = np.asarray(paths, np.bytes_)
        self.labels, self.class_names = np.asarray(labels, np.int32), tuple(class_names)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        path = self.path(index)
        return {"image": path.read_bytes(), "label": int(self.labels[index]), "name": os.fspath(path)}

    def name(self, index: int) -> str:
        """Return the path of an image without reading it."""
        return os.fspath(self.path(index))

    def path(self, index: int) -> epath.Path:
        """Return the path of an image."""
        return _path(self.root, self.paths[index])

    def key(self, index: int) -> bytes:
        """Return the relative path and the size of an image; that of a remote one is not looked up."""
        path = bytes(self.paths[index])
        if b"://" in path or "://" in self.root:
            return path
        file = os.path.join(os.fsencode(self.root), path)
        size = os.path.getsize(file) if os.path.exists(file) else "missing"
        relative = os.path.relpath(path, self._above) if os.path.isabs(path) else path
        return relative + f" {size}".encode()

    @functools.cached_property
    def _above(self) -> bytes:
        """The folder that all absolute paths are in."""
        return os.path.commonpath([os.path.dirname(path) for path in self.paths if os.path.isabs(path)])


def open_folder(config: SourceConfig, split: SplitName) -> FileSource:
    """Open the images below a folder; the folders in it are the classes.

    Images may be deeper in a class's folder. If the folder holds `train` and `test` (or `val`, `valid`,
    `validation`) and no other folders with images, these hold the class folders; if not, a share of each
    class is held out for testing. Images beside the class folders are a class of the folder's name.

    Raises:
      UserError: No such folder, no image in it, or more than one way to read it.
    """
    top = existing(config, "a folder with a folder of images for each class")
    if not top.is_dir():
        raise UserError(f"{config.where}.path={config.path} is a file; the source 'folder' needs a folder.")
    lister = Lister(top)
    places = _split_folders(lister)
    found = {place: _listed(lister, place, top.name) for place in places.values()}
    if lister.linked:
        _refuse_shared_files(lister, found)
    passed_over = lister.report()
    class_names = sorted(set().union(*found.values()))
    place = places.get(split, next(iter(places.values())))
    root = top / place if place else top
    by_class = [found[place].get(name, np.array([], np.bytes_)) for name in class_names]
    paths = np.concatenate(by_class) if by_class else np.array([], np.bytes_)
    labels = np.repeat(np.arange(len(by_class)), list(map(len, by_class)))
    if not len(paths):
        raise UserError(
            f"No images below {root}: it should hold a folder for each class, with files ending in "
            f"{', '.join(SUFFIXES[:2])}, .png, …{_but(passed_over)}"
        )
    if len(places) < 2:
        chosen = held_out(paths, labels, config.test_fraction)[split == "test"]
        paths, labels = paths[chosen], labels[chosen]
    names = [to_text(name) for name in class_names]
    shown = list(map(readable, names))
    names = shown if len(set(shown)) == len(shown) else names
    return FileSource(os.fspath(root), paths, labels, names, passed_over)


def _split_folders(lister: Lister) -> dict[str, str]:
    """Return the folders that hold the class folders, by split; {"all": ""}: the folder itself does."""
    say = functools.partial(log_once, logging.INFO)
    folders, loose = lister.level("")
    train = next((name for name in folders if name.lower() == "train"), None)
    if train is None:
        return {"all": ""}
    tests = [name for wanted in TEST_FOLDERS for name in folders if name.lower() == wanted]
    others = [name for name in folders if name != train and name not in tests and lister.has_images(name)]
    classes, _ = lister.level(train)
    if others and any(lister.has_images(f"{train}/{name}") for name in classes):
        raise UserError(
            f"{lister.root} holds the folder {train}, with folders of images in it, and beside it "
            f"{', '.join(others[:5])}: is {train} a class, or does it hold the training images? Rename the "
            f"class, or move the other folders out."
        )
    if others:
        say(f"{lister.root}: {train} is read as a class, like {', '.join(others[:5])}")
        return {"all": ""}
    for name in loose:
        lister.pass_over(name, "image beside the splits", "images beside the splits")
    if not tests:
        say(f"{lister.root}: training and test images are those in {train}")
        return {"all": train}
    test = next((name for name in tests if set(classes) & set(lister.level(name)[0])), tests[0])
    for name in tests:
        if name != test:
            lister.pass_over(name, "folder of another split", "folders of other splits")
    say(f"{lister.root}: training images are those in {train}, test images those in {test}")
    return {"train": train, "test": test}


def _listed(lister: Lister, place: str, own_name: str) -> dict[bytes, np.ndarray]:
    """Return the paths below a folder by class: each folder in it, and its loose images by its own name."""
    folders, loose = lister.level(place)
    prefix = f"{place}/" if place else ""
    found = {}
    for name in folders:
        paths = lister.images(prefix + name, group=prefix + name)
        found[os.fsencode(name)] = np.array([os.fsencode(path[len(prefix) :]) for path in paths], np.bytes_)
    if loose:
        own = np.array(list(map(os.fsencode, loose)))
        found[os.fsencode(own_name)] = np.concatenate([found.get(os.fsencode(own_name), own[:0]), own])
    return found


def _refuse_shared_files(lister: Lister, found: dict[str, dict[bytes, np.ndarray]]) -> None:
    """Raise a UserError if links make one file an image of two classes or splits; else keep it once."""
    images = [
        (place, name, raw) for place, by in found.items() for name, paths in by.items() for raw in paths
    ]
    paths = [lister.root / place / os.fsdecode(raw) for place, _, raw in images]
    ids = np.array([(state.st_dev, state.st_ino) for state in map(os.stat, paths)], np.uint64)
    _, first, inverse = np.unique(ids, axis=0, return_index=True, return_inverse=True)
    original = first[inverse.ravel()]
    for i in np.flatnonzero(original != np.arange(len(images))):
        place, name, raw = images[i]
        if images[original[i]][:2] != (place, name):
            raise UserError(
                f"{paths[i]} and {paths[original[i]]} are the same file, through a link, but an image can be "
                "in one class and in one split only. Remove one of them."
            )
        found[place][name] = found[place][name][found[place][name] != raw]
        lister.pass_over(
            os.fspath(paths[i]), "link to a file listed already", "links to files listed already"
        )


def existing(config: SourceConfig, wanted: str) -> epath.Path:
    """Return `config.path`, if it exists.

    Args:
      config: The source.
      wanted: Noun phrase for what should be there.

    Raises:
      UserError: There is nothing, or remote files cannot be read.
    """
    if not config.path:
        raise UserError(f"{config.where}.path is empty: the source {config.source!r} needs {wanted}.")
    path = epath.Path(config.path).expanduser()
    try:
        there = path.exists()
    except ImportError as error:
        raise UserError(f"Reading {config.path} needs gcsfs ({error}): pip install gcsfs.") from error
    if not there:
        hint = " `python -m l2l_jax.data.make_local` makes it." if config.path == MADE_LOCALLY else ""
        raise UserError(f"{config.where}.path={config.path} does not exist; it should be {wanted}.{hint}")
    return path


def _path(root: str, path: bytes) -> epath.Path:
    if "://" in root or b"://" in path:
        text = path.decode("utf-8", "surrogateescape")
        return epath.Path(text) if "://" in text else epath.Path(root) / text
    return epath.Path(root) / os.fsdecode(bytes(path))


def to_text(raw: bytes) -> str:
    """Decode a name; bytes that are not UTF-8 become surrogates."""
    return bytes(raw).decode("utf-8", "surrogateescape")


def _but(passed_over: str) -> str:
    return f" Passed over: {passed_over}." if passed_over else ""


def in_threads(function: Callable[[epath.Path], object], paths: Iterable[epath.Path]) -> list:
    """Call a function on many paths at once: for slow storage."""
    with DaemonPool(THREADS) as pool:
        return pool.map(function, paths)
