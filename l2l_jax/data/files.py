"""Sources of user image files: a folder of class folders, or a table of paths."""

import csv
import functools
import io
import logging
import os
import posixpath
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from etils import epath

from l2l_jax.data.class_names import readable
from l2l_jax.data.config import SourceConfig
from l2l_jax.data.listing import SUFFIXES, Lister, log_once
from l2l_jax.data.records import Record, Source, SplitName, Subset, hold_out
from l2l_jax.errors import UserError
from l2l_jax.utils.text import printable
from l2l_jax.utils.threads import DaemonPool

logger = logging.getLogger(__name__)
# Names of the folder or split of test images (training images are in "train")
TEST_FOLDERS = ("test", "val", "valid", "validation")
MADE_LOCALLY = "data/local"  # folder written by `l2l_jax.data.make_local`
THREADS = 16  # threads that access files, whose storage may be slow
RESOLVED_LINES = 20_000  # maximum lines of a table to resolve links when looking for duplicate files
CHECKED_FILES = 1000  # number of files whose existence is checked when a table is opened


class FileSource(Source):
    """Image files below a root, named by bytes; `passed_over` describes files that are skipped."""

    # File names. Absolute paths are made relative to the root, or else to their common folder, which keeps
    # names unchanged when the images are moved.
    paths: np.ndarray

    def __init__(self, root: str, files: Any, labels: np.ndarray, class_names: Any, passed_over: str = ""):
        self.root, self.passed_over = root, passed_over
        self._files = np.asarray(files, np.bytes_)
        self.paths = _names(root, self._files)
        self.labels, self.class_names = np.asarray(labels, np.int32), tuple(class_names)

    def __getitem__(self, index: int) -> Record:
        image = self.path(index).read_bytes()
        return {"image": image, "label": int(self.labels[index]), "name": self.name(index)}

    def name(self, index: int) -> str:
        """Return the path of an image without reading it."""
        return os.fspath(self.path(index))

    def path(self, index: int) -> epath.Path:
        """Return the path of an image."""
        raw = bytes(self._files[index])
        path = _text(raw) if "://" in self.root or b"://" in raw else os.fsdecode(raw)
        return open_path(path) if "://" in path else epath.Path(self.root) / path

    def key(self, index: int) -> bytes:
        """Return the relative path and the size of an image; for remote images, the path only."""
        path = bytes(self.paths[index])
        if b"://" in path or "://" in self.root:
            return path
        file = os.path.join(os.fsencode(self.root), bytes(self._files[index]))
        size = os.path.getsize(file) if os.path.exists(file) else "missing"
        return path + f" {size}".encode()


def _names(root: str, files: np.ndarray) -> np.ndarray:
    top = os.fsencode(os.path.abspath(root))
    absolute = np.flatnonzero(np.char.startswith(files, b"/"))
    inside = [os.path.commonpath([top, files[i]]) == top for i in absolute]
    outside = [os.path.dirname(files[i]) for i, below in zip(absolute, inside, strict=True) if not below]
    shared = os.path.commonpath(outside) if outside else top
    names = list(files)
    for i, below in zip(absolute, inside, strict=True):
        names[i] = os.path.relpath(files[i], top if below else shared)
    return np.array(names, np.bytes_) if len(absolute) else files


def open_path(path: str) -> epath.Path:
    """Return a local or remote path; raise a UserError for unsupported remote schemes."""
    kind, remote, _ = path.partition("://")
    if remote and kind != "gs":
        raise UserError(f"{path}: images are local files or in gs:// buckets; {kind}:// is not read.")
    return epath.Path(path)


def find(config: SourceConfig, wanted: str, *, folder: bool) -> epath.Path:
    """Return `config.path` if it is an existing `folder` (or file); `wanted` describes it in errors."""
    if not config.path:
        raise UserError(f"{config.where}.path is empty: the source {config.source!r} needs {wanted}.")
    path, setting = open_path(config.path).expanduser(), f"{config.where}.path={config.path}"
    try:
        exists = path.exists()
    except ImportError as error:
        raise UserError(f"Reading {config.path} needs gcsfs ({error}): pip install gcsfs.") from error
    if not exists:
        hint = " `python -m l2l_jax.data.make_local` makes it." if config.path == MADE_LOCALLY else ""
        raise UserError(f"{setting} does not exist; it should be {wanted}.{hint}")
    if path.is_dir() != folder:
        kind = "file" if folder else "folder"
        raise UserError(f"{setting} is a {kind}; the source {config.source!r} needs {wanted}.")
    return path


def open_folder(config: SourceConfig, split: SplitName) -> FileSource:
    """Open the images below a folder, whose subfolders are the classes.

    Images may be nested deeper in a class folder. If the folder holds `train` and `test` (or `val`, `valid`,
    `validation`) and no other folders with images, these hold the class folders; otherwise, a fraction of
    each class is held out for testing. Images next to the class folders form a class with the folder's name.
    """
    top = find(config, "a folder with a folder of images for each class", folder=True)
    lister = Lister(top)
    places = _split_folders(lister)
    groups = {
        (place, name): paths
        for place in places.values()
        for name, paths in _list_classes(lister, place, top.name).items()
    }
    groups = lister.without_copies(groups)
    passed_over = lister.report()
    classes = sorted({name for _, name in groups}, key=os.fsencode)
    place = places.get(split, next(iter(places.values())))
    prefix = f"{place}/" if place else ""
    listed = [groups.get((place, name), []) for name in classes]
    labels = np.repeat(np.arange(len(classes)), list(map(len, listed)))
    paths = np.array([os.fsencode(path[len(prefix) :]) for group in listed for path in group], np.bytes_)
    root = top / place
    if not len(paths):
        hint = f" Skipped: {passed_over}." if passed_over else ""
        raise UserError(
            f"No images below {root}: it should hold a folder for each class, with files ending in "
            f"{', '.join(SUFFIXES[:2])}, .png, …{hint}"
        )
    if len(places) < 2:
        chosen = hold_out(labels, config.test_fraction, held=split == "test", names=paths)
        paths, labels = paths[chosen], labels[chosen]
    names = [_text(os.fsencode(name)) for name in classes]
    decoded = list(map(readable, names))
    class_names = decoded if len(set(decoded)) == len(decoded) else names
    return FileSource(os.fspath(root), paths, labels, class_names, passed_over)


def _split_folders(lister: Lister) -> dict[str, str]:
    """Return the parent folders of the class folders by split; {"all": ""} for the root itself."""
    log = functools.partial(log_once, logging.INFO)
    folders, loose = lister.level("")
    train = next((name for name in folders if name.lower() == "train"), None)
    if train is None:
        return {"all": ""}
    tests = [name for wanted in TEST_FOLDERS for name in folders if name.lower() == wanted]
    others = [name for name in folders if name != train and name not in tests and lister.has_images(name)]
    classes, _ = lister.level(train)
    if others and any(lister.has_images(f"{train}/{name}") for name in classes):
        raise UserError(
            f"{lister.root} holds the folder {train}, with folders of images in it, and next to it "
            f"{', '.join(others[:5])}: is {train} a class, or does it hold the training images? Rename the "
            f"class, or move the other folders out."
        )
    if others:
        log(f"{lister.root}: {train} is read as a class, like {', '.join(others[:5])}")
        return {"all": ""}
    for name in loose:
        lister.pass_over(name, "image{s} next to the splits")
    if not tests:
        log(f"{lister.root}: training and test images are those in {train}")
        return {"all": train}
    test = next((name for name in tests if set(classes) & set(lister.level(name)[0])), tests[0])
    for name in tests:
        if name != test:
            lister.pass_over(name, "folder{s} of another split")
    log(f"{lister.root}: training images are those in {train}, test images those in {test}")
    return {"train": train, "test": test}


def _list_classes(lister: Lister, place: str, own_name: str) -> dict[str, list[str]]:
    """Return the paths below a folder by class: its subfolders, and `own_name` for images directly in it."""
    folders, loose = lister.level(place)
    prefix = f"{place}/" if place else ""
    paths = {name: lister.images(prefix + name) for name in folders}
    if loose:
        paths[own_name] = [*paths.get(own_name, []), *(prefix + name for name in loose)]
    return paths


class _Line(NamedTuple):
    """A line of a table; `split` is "" if the table has no such column."""

    number: int
    path: bytes
    label: str
    split: Literal["", "train", "test"]

    @property
    def use(self) -> str:
        return self.label + {"": "", "train": ", for training", "test": ", for testing"}[self.split]


def open_csv(config: SourceConfig, split: SplitName) -> Source:
    """Open the images listed in a table with the columns `path`, `label` and optionally `split`.

    Paths are relative to the table's folder. Labels are class names. Splits are `train` and `test` (or `val`,
    `valid`, `validation`); without this column, a fraction of each class is held out for testing.
    """
    table = find(config, "a CSV file with the columns path and label", folder=False)
    root = os.fspath(table.parent)
    try:
        lines = _read_table(table)
    except csv.Error as error:
        raise UserError(f"{table} is not a table of comma-separated values ({error}).") from error
    if not lines:
        raise UserError(f"{table} lists no images: there is no line after the header.")
    lines = _without_repetitions(table, root, lines)
    labels = {line.label for line in lines}  # numbers are sorted numerically, before other names
    class_names = sorted(labels, key=lambda x: (False, int(x), "") if x.isdecimal() else (True, 0, x))
    class_ids = {name: number for number, name in enumerate(class_names)}
    ids = np.array([class_ids[line.label] for line in lines])
    source = FileSource(root, [line.path for line in lines], ids, class_names)
    if lines[0].split:
        chosen = np.flatnonzero([line.split == split for line in lines])
        hint = "its column split should say 'train' or 'test'"
    else:
        chosen = hold_out(ids, config.test_fraction, held=split == "test", names=source.paths)
        hint = "a class needs two images, one of which is held out for testing"
    if not len(chosen):
        raise UserError(f"{table} lists no {split} image: {hint}.")
    sample = chosen[np.unique(np.linspace(0, len(chosen) - 1, CHECKED_FILES).astype(int))]
    _check_files(table, [(lines[i].number, source.path(i)) for i in sample])
    return Subset(source, chosen)


def _read_table(table: epath.Path) -> list[_Line]:
    parsed: list[_Line] = []
    odd = None
    with table.open("rb") as file, io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", "") as lines:
        rows = csv.reader(lines, skipinitialspace=True)
        header = [name.strip() for name in next(rows, [])]
        if any("\0" in name for name in header):
            raise UserError(f"{table} is not UTF-8: save the table as CSV in UTF-8.")
        for name in ("path", "label", *(["split"] if "split" in header else [])):
            if header.count(name) != 1:
                raise UserError(
                    f"{table} has {'two columns' if name in header else 'no column'} {name!r}: its first "
                    "line should be path,label or path,label,split, separated by commas, and is "
                    f"{','.join(header) or 'empty'}."
                )
        for row in filter(any, rows):
            line = _parse_line(row, header, table, rows.line_num)
            label = readable(line.label)
            odd = odd or (line.number if label != line.label else None)
            parsed.append(line._replace(label=label))
    if odd:
        sentence = "%s is not UTF-8 (line %d): read as Windows-1252. If labels look wrong, save it as UTF-8."
        logger.warning(sentence, table, odd)
    return parsed


def _parse_line(row: list[str], header: list[str], table: epath.Path, number: int) -> _Line:
    where = f"{table}, line {number}"
    if len(row) > len(header):
        raise UserError(
            f"{where} has {len(row)} fields, but the header names {len(header)}: {','.join(row)}. Put a "
            "field that holds a comma between double quotes."
        )
    values = dict(zip(header, map(str.strip, row), strict=False))
    path, label = values.get("path"), values.get("label")
    if not path or not label or "\0" in path:
        raise UserError(f"{where}: path or label is missing.")
    line = _Line(number, path.encode("utf-8", "surrogateescape"), label, "")
    if "split" not in header:
        return line
    split_name, choices = values.get("split", ""), ("train", *TEST_FOLDERS)
    if split_name.lower() not in choices:
        raise UserError(f"{where}: split is {split_name!r}; known: {', '.join(choices)}.")
    return line._replace(split="train" if split_name.lower() == "train" else "test")


def _without_repetitions(table: epath.Path, root: str, lines: list[_Line]) -> list[_Line]:
    """Drop lines that repeat the file of an earlier line; raise a UserError if the two contradict."""
    top = (root if "://" in root else os.path.abspath(root)).encode("utf-8", "surrogateescape")
    local = "://" not in root and len(lines) <= RESOLVED_LINES
    resolve = os.path.realpath if local else posixpath.normpath
    first: dict[bytes, _Line] = {}
    repeated = []
    for line in lines:
        earlier = first.setdefault(resolve(posixpath.join(top, line.path)), line)
        if earlier.use != line.use:
            raise UserError(
                f"{table}, line {line.number}: {_text(line.path)} ({line.use}) is the file of "
                f"line {earlier.number} already ({earlier.use}), but an image can be in one class "
                "and in one split only. Remove one of the two lines."
            )
        if earlier is not line:
            repeated.append(line.number)
    if repeated:
        sentence = "%s: %d repetition%s of earlier lines' files left out, the first in line %d"
        logger.warning(sentence, table, len(repeated), "s" * (len(repeated) > 1), repeated[0])
    return list(first.values())


def _check_files(table: epath.Path, sample: Sequence[tuple[int, epath.Path]]) -> None:
    """Check that some of the files exist, to detect a wrong column or folder early."""
    with DaemonPool(THREADS) as pool:
        are_files = pool.map(lambda line: line[1].is_file(), sample)
    wrong = [line for line, is_file in zip(sample, are_files, strict=True) if not is_file]
    if not wrong:
        return
    number, path, name = *wrong[0], printable(os.fspath(wrong[0][1]))
    if path.exists():
        kind = "folder" if path.is_dir() else "special file"
        raise UserError(f"{table}, line {number}: {name} is a {kind}, not an image.")
    raise UserError(
        f"{table}: {len(wrong)} of {len(sample)} files looked for do not exist, the first being "
        f"{name} (line {number}). Paths are relative to the table's folder, or absolute."
    )


def _text(raw: bytes) -> str:
    """Decode a file name; bytes that are not UTF-8 become surrogates."""
    return bytes(raw).decode("utf-8", "surrogateescape")
