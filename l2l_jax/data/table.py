"""A table of image files as a source."""

import array
import csv
import dataclasses
import io
import logging
import os
import posixpath
from collections.abc import Sequence

import numpy as np
from etils import epath

from l2l_jax.data.class_names import readable
from l2l_jax.data.config import SourceConfig
from l2l_jax.data.files import TEST_FOLDERS, FileSource, existing, in_threads, to_text
from l2l_jax.data.records import SplitName, held_out
from l2l_jax.errors import UserError

logger = logging.getLogger(__name__)

RESOLVED_LINES = 20_000
"""Lines up to which links are followed to find files that are named twice."""

CHECKED_FILES = 1000
"""Files of a table whose existence is checked when it is opened."""


def open_csv(config: SourceConfig, split: SplitName) -> FileSource:
    """Open the images that a table names: columns `path`, `label` and, if given, `split`.

    Paths are relative to the table's folder; labels are class names; splits are `train`, and `test`
    (or `val`, `valid`, `validation`). Without that column a share of each class is held out for testing.

    Raises:
      UserError: No such table, a damaged line, a file in two classes or splits, or files that do not exist.
    """
    table = existing(config, "a CSV file with the columns path and label")
    if table.is_dir():
        raise UserError(f"{config.where}.path={config.path} is a folder; the source 'csv' needs a CSV file.")
    root = os.fspath(table.parent)
    try:
        lines = _read_table(table)
    except csv.Error as error:
        raise UserError(f"{table} is not a table of comma-separated values ({error}).") from error
    if not len(lines.paths):
        raise UserError(f"{table} names no image: there is no line after the header.")
    lines = _without_repetitions(table, root, lines)
    class_names = sorted(lines.class_names, key=_as_numbers)
    labels = np.array([class_names.index(name) for name in lines.class_names])[lines.labels]
    if lines.is_test is None:
        chosen = held_out(lines.paths, labels, config.test_fraction)[split == "test"]
    else:
        chosen = np.flatnonzero(lines.is_test == (split == "test"))
    if not len(chosen):
        raise UserError(f"{table} names no {split} image: its column split should say 'train' or 'test'.")
    source = FileSource(root, lines.paths[chosen], labels[chosen], class_names)
    sample = np.unique(np.linspace(0, len(chosen) - 1, CHECKED_FILES).astype(int))
    _check_files(table, [(lines.numbers[chosen[i]], source.path(i)) for i in sample])
    return source


@dataclasses.dataclass(frozen=True)
class _Lines:
    """The lines of a table, an array for each column; `is_test` is None if there is no column `split`."""

    numbers: np.ndarray
    paths: np.ndarray
    labels: np.ndarray
    is_test: np.ndarray | None
    class_names: list[str]

    def describe(self, line: np.integer) -> str:
        use = "" if self.is_test is None else ", for testing" if self.is_test[line] else ", for training"
        return f"{self.class_names[self.labels[line]]}{use}"


def _read_table(table: epath.Path) -> _Lines:
    numbers, paths, labels, is_test = array.array("q"), [], array.array("i"), array.array("b")
    classes: dict[str, int] = {}
    split_name = odd = None
    with table.open("rb") as file, io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", "") as lines:
        rows = csv.reader(lines, skipinitialspace=True)
        header = [name.strip() for name in next(rows, [])]
        for name in ("path", "label"):
            if header.count(name) != 1:
                raise UserError(
                    f"{table} has {'two columns' if name in header else 'no column'} {name!r}: its first "
                    f"line should be path,label or path,label,split, and is {','.join(header) or 'empty'}."
                )
        for row in filter(any, rows):
            path, label, split_name = _fields(row, header, f"{table}, line {rows.line_num}")
            if label != (text := readable(label)):
                label, odd = text, odd or rows.line_num
            numbers.append(rows.line_num)
            paths.append(path.encode("utf-8", "surrogateescape"))
            labels.append(classes.setdefault(label, len(classes)))
            is_test.append(split_name not in (None, "train"))
    if odd:
        logger.warning(
            "%s is not UTF-8 (line %d). Labels are read as Windows-1252; if class names look wrong, save the "
            "table as UTF-8.",
            table,
            odd,
        )
    columns = np.array(numbers), np.array(paths, np.bytes_), np.array(labels)
    return _Lines(*columns, None if split_name is None else np.array(is_test, bool), list(classes))


def _fields(row: list[str], header: list[str], where: str) -> tuple[str, str, str | None]:
    """Return path, label and split of a line."""
    if len(row) > len(header):
        raise UserError(
            f"{where} has {len(row)} fields, but the header names {len(header)}: {','.join(row)}. Put a "
            "field that holds a comma between double quotes."
        )
    values = dict(zip(header, map(str.strip, row), strict=False))
    path, label = values.get("path"), values.get("label")
    if not path or not label or "\0" in path:
        raise UserError(f"{where}: path or label is missing.")
    split_name = values.get("split", "").lower() if "split" in header else None
    if split_name not in (None, "train", *TEST_FOLDERS):
        known = ", ".join(("train", *TEST_FOLDERS))
        raise UserError(f"{where}: split is {values.get('split', '')!r}; known: {known}.")
    return path, label, split_name


def _without_repetitions(table: epath.Path, root: str, lines: _Lines) -> _Lines:
    """Leave out lines that repeat another one's file; an error if they contradict it."""
    above = (root if "://" in root else os.path.abspath(root)).encode("utf-8", "surrogateescape")
    local = "://" not in root and len(lines.paths) <= RESOLVED_LINES
    resolve = os.path.realpath if local else posixpath.normpath
    files = np.array([resolve(posixpath.join(above, path)) for path in lines.paths])
    _, first, inverse = np.unique(files, return_index=True, return_inverse=True)
    original = first[inverse]
    repeated = np.flatnonzero(original != np.arange(len(files)))
    for line in repeated:
        now, before = lines.describe(line), lines.describe(original[line])
        if now != before:
            raise UserError(
                f"{table}, line {lines.numbers[line]}: {to_text(lines.paths[line])} ({now}) is the file of "
                f"line {lines.numbers[original[line]]} already ({before}), but an image can be in one class "
                "and in one split only. Remove one of the two lines."
            )
    if len(repeated):
        logger.warning(
            "%s: %d lines repeat the file of an earlier line and are left out, the first being line %d",
            table,
            len(repeated),
            lines.numbers[repeated[0]],
        )
    kept = np.sort(first)
    is_test = None if lines.is_test is None else lines.is_test[kept]
    return _Lines(lines.numbers[kept], lines.paths[kept], lines.labels[kept], is_test, lines.class_names)


def _as_numbers(name: str) -> tuple[bool, int, str]:
    """Sort numbers as numbers, before other names."""
    return (False, int(name), "") if name.isdecimal() else (True, 0, name)


def _check_files(table: epath.Path, sample: Sequence[tuple[int, epath.Path]]) -> None:
    """Look for some of the files, so that a wrong column or folder does not get far."""
    kinds = in_threads(_kind, [path for _, path in sample])
    wrong = [(*where, kind) for where, kind in zip(sample, kinds, strict=True) if kind != "file"]
    if not wrong:
        return
    number, path, kind = wrong[0]
    if kind != "missing":
        raise UserError(f"{table}, line {number}: {path} is a {kind}, not an image.")
    missing = sum(kind == "missing" for *_, kind in wrong)
    raise UserError(
        f"{table}: {missing} of {len(sample)} files looked for do not exist, the first being "
        f"{path} (line {number}). Paths are relative to the table's folder, or absolute."
    )


def _kind(path: epath.Path) -> str:
    if path.is_file():
        return "file"
    return "folder" if path.is_dir() else "special file" if path.exists() else "missing"
