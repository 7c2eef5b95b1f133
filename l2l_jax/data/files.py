"""Images in files of the user's own: a folder of class folders, or a table of paths."""

import array
import concurrent.futures
import csv
import io
import os
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath

from l2l_jax.data.config import SourceConfig
from l2l_jax.data.records import Record, Split, held_out
from l2l_jax.data.string_table import StringTable
from l2l_jax.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
"""Endings of image files, in lower case."""

TEST_FOLDERS = ("test", "val", "validation")
"""Names of the folder or the split of test images, beside "train"."""

MADE_LOCALLY = "data/local"
"""Folder that `l2l_jax.data.make_local` makes."""

CHECKED_FILES = 1000
"""Files of a table whose existence is checked when it is opened."""


class FileSource:
    """Image files, a class id for each.

    Args:
      root: folder that the paths are relative to; may be remote.
      paths: of the files.
      labels: class ids.
      class_names: names of the class ids.
    """

    def __init__(self, root: str, paths: StringTable, labels: np.ndarray, class_names: Sequence[str]):
        self._root, self.paths = root, paths
        self.labels, self.class_names = np.asarray(labels, np.int32), tuple(class_names)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        path = _join(self._root, self.paths[index])
        return {"image": path.read_bytes(), "label": int(self.labels[index]), "name": os.fspath(path)}


def open_folder(config: SourceConfig, split: Split) -> FileSource:
    """The images below a folder; the folders in it are the classes.

    Images may lie deeper in a class's folder. If the folder holds `train` and `test` (or `val`,
    `validation`), these hold the class folders; if not, a share of each class is held out for
    testing. Images that lie beside the class folders are a class of the folder's name.

    Raises:
      UserError: no such folder, or no image in it.
    """
    top = existing(config, "a folder with a folder of images for each class")
    if not top.is_dir():
        raise UserError(f"{config.where}.path={config.path} is a file; the source 'folder' needs a folder.")
    train, test = top / "train", _test_folder(top)
    both = train.is_dir() and test is not None
    roots = {"train": train, "test": test} if both else {split: train if train.is_dir() else top}
    places = {of: _places(root, top.name) for of, root in roots.items()}
    class_names = sorted(set().union(*places.values()))
    root, paths, labels = roots[split], StringTable(), array.array("i")
    for number, name in enumerate(class_names):
        for place in places[split].get(name, ()):
            for path in sorted(_images_in(root, place)):
                paths.append(path)
                labels.append(number)
    labels = np.array(labels, np.int32)
    if not len(paths):
        raise UserError(
            f"No images below {root}: it should hold a folder for each class, with files ending in "
            f"{', '.join(SUFFIXES[:4])}, …"
        )
    if not both:
        chosen = held_out(paths, labels, config.test_fraction)[split == "test"]
        paths, labels = StringTable(paths[i] for i in chosen), labels[chosen]
    return FileSource(os.fspath(root), paths, labels, class_names)


def open_csv(config: SourceConfig, split: Split) -> FileSource:
    """The images that a table names: columns `path`, `label` and, if given, `split`.

    Paths are relative to the table's folder; labels are class names; splits are `train`, and `test`
    (or `val`, `validation`). Without that column a share of each class is held out for testing.

    Raises:
      UserError: no such table, a column or a value is missing, or files that it names are.
    """
    table = existing(config, "a CSV file with the columns path and label")
    if table.is_dir():
        raise UserError(f"{config.where}.path={config.path} is a folder; the source 'csv' needs a CSV file.")
    paths, labels, is_test = StringTable(), array.array("i"), array.array("b")
    numbers: dict[str, int] = {}  # of the classes, as they come
    with_splits = False
    for path, name, of in _rows(table):
        paths.append(path)
        labels.append(numbers.setdefault(name, len(numbers)))
        is_test.append(of == "test")
        with_splits = of is not None
    if not len(paths):
        raise UserError(f"{table} names no image: there is no line after the header.")
    class_names = sorted(numbers, key=_as_numbers)
    labels = np.argsort([numbers[name] for name in class_names])[np.array(labels)]
    if with_splits:
        chosen = np.flatnonzero(np.array(is_test) == (split == "test"))
    else:
        chosen = held_out(paths, labels, config.test_fraction)[split == "test"]
    if not len(chosen):
        raise UserError(f"{table} names no {split} image: its column split should say 'train' or 'test'.")
    source = FileSource(
        os.fspath(table.parent), StringTable(paths[i] for i in chosen), labels[chosen], class_names
    )
    _check_files(source, table)
    return source


def _as_numbers(name: str) -> tuple[bool, int, str]:
    """Sorts numbers as numbers, before other names."""
    return (False, int(name), "") if name.isdecimal() else (True, 0, name)


def existing(config: SourceConfig, wanted: str) -> epath.Path:
    """`config.path`, if there is something.

    Raises:
      UserError: there is nothing, or remote files cannot be read; `wanted` says what should be there.
    """
    if not config.path:
        raise UserError(f"{config.where}.path is empty: the source {config.source!r} needs {wanted}.")
    path = epath.Path(config.path).expanduser()
    try:
        there = path.exists()
    except ImportError as error:
        raise UserError(
            f"Reading {config.path} needs gcsfs ({error}): pip install 'l2l_jax[gcs]'."
        ) from error
    if not there:
        hint = " `python -m l2l_jax.data.make_local` makes it." if config.path == MADE_LOCALLY else ""
        raise UserError(f"{config.where}.path={config.path} does not exist; it should be {wanted}.{hint}")
    return path


def is_image(name: str) -> bool:
    """Whether a file of this name is an image; hidden files are not."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _test_folder(root: epath.Path) -> epath.Path | None:
    return next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None)


def _places(root: epath.Path, own_name: str) -> dict[str, list[str]]:
    """Where the images of each class lie in `root`: in a folder of its name, or loose ("")."""
    names = [entry.name for entry in root.iterdir() if not entry.name.startswith(".")]
    places = {name: [name] for name in names if (root / name).is_dir()}
    if any(is_image(name) and name not in places for name in names):
        places.setdefault(own_name, []).append("")
    return places


def _images_in(root: epath.Path, place: str) -> Iterator[str]:
    """Paths below `root` of its loose images, or of all images below a folder in it; links are followed."""
    if not place:
        names = (entry.name for entry in root.iterdir() if not entry.is_dir())
        yield from filter(is_image, names)
        return
    folder = root / place
    remote = "://" in os.fspath(folder)
    walk = folder.walk() if remote else os.walk(folder, onerror=_fail, followlinks=True)
    start = len(_without_protocol(folder))
    seen = set()
    for at, folders, files in walk:
        if not remote:
            real = os.path.realpath(at)
            if real in seen:  # a link to a folder above it
                folders.clear()
                continue
            seen.add(real)
        deeper = _without_protocol(at)[start:]
        yield from (f"{place}{deeper}/{name}" for name in files if is_image(name))


def _fail(error: OSError) -> None:
    raise error


def _join(root: str, path: str) -> epath.Path:
    return epath.Path(path) if "://" in path else epath.Path(root) / path


def _without_protocol(path: os.PathLike | str) -> str:
    """Of remote folders, `walk` yields bucket/folder instead of gs://bucket/folder."""
    return os.fspath(path).rpartition("://")[2].strip("/")


def _rows(table: epath.Path) -> Iterator[tuple[str, str, Split | None]]:
    """Path, class name and split of each line."""
    with table.open("rb") as file, io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", "") as text:
        rows = csv.DictReader(text, skipinitialspace=True)
        columns = [name.strip() for name in rows.fieldnames or ()]
        rows.fieldnames = columns
        for name in ("path", "label"):
            if name not in columns:
                raise UserError(
                    f"{table} has no column {name!r}: its first line should be path,label or "
                    f"path,label,split, and is {','.join(columns) or 'empty'}."
                )
        for row in rows:
            if not row["path"] or not row["label"]:
                raise UserError(f"{table}, line {rows.line_num}: path or label is missing.")
            yield row["path"].strip(), row["label"].strip(), _split_of(row, f"{table}, line {rows.line_num}")


def _split_of(row: dict[str, str], where: str) -> Split | None:
    if "split" not in row:
        return None
    name = (row["split"] or "").strip().lower()
    if name != "train" and name not in TEST_FOLDERS:
        known = ", ".join(("train", *TEST_FOLDERS))
        raise UserError(f"{where}: split is {row['split']!r}; known: {known}.")
    return "train" if name == "train" else "test"


def _check_files(source: FileSource, table: epath.Path) -> None:
    """Look for some of the files, so that a wrong column or folder does not get far."""
    sample = np.unique(np.linspace(0, len(source) - 1, CHECKED_FILES).astype(int))
    paths = [_join(source._root, source.paths[i]) for i in sample]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        missing = [path for path, there in zip(paths, pool.map(_is_there, paths), strict=True) if not there]
    if missing:
        raise UserError(
            f"{table}: {len(missing)} of {len(paths)} files looked for do not exist, the first being "
            f"{missing[0]}. Paths are relative to the table's folder, or absolute."
        )


def _is_there(path: epath.Path) -> bool:
    return path.exists()
