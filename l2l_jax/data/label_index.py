"""The labels of a prepared data set, read once and kept beside it.

To know a record's label the whole record must be read, though nothing is decoded. For ImageNet that
are 140 GB, so the labels are collected by several processes and saved.
"""

import concurrent.futures
import functools
import hashlib
import io
import logging
import multiprocessing
import os
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from google.protobuf.message import DecodeError

from l2l_jax.errors import UserError
from l2l_jax.utils.progress import Progress
from l2l_jax.utils.runtime import usable_cpus

logger = logging.getLogger(__name__)

CHUNK = 2000
"""Records that a process reads at a time."""

PARALLEL_FROM = 20_000
"""Records from which on it is worth starting processes."""

MAX_PROCESSES = 16


def parse_example(record: bytes) -> Mapping[str, Any]:
    """Return the features of a serialized `tf.train.Example`, by name.

    Raises:
      google.protobuf.message.DecodeError: It is none.
    """
    from tensorflow_datasets.proto import tf_example_pb2  # start-up time

    return tf_example_pb2.Example.FromString(bytes(record)).features.feature


def load_labels(folder: epath.Path, split: str, records: Sequence[bytes]) -> np.ndarray:
    """Load the class ids of a split `[record]`, int16 or int32.

    They come from the index beside the data or in the user's cache folder, if one was made of the
    same files; otherwise they are read from the records, and the index is written: beside the data,
    or in the cache folder where the data is read-only.

    Args:
      folder: Folder of the prepared data set.
      split: Name of the split.
      records: Random access to the split's serialized examples; it can be pickled.

    Raises:
      UserError: A record without a label.
    """
    fingerprint = fingerprint_of(folder, split)
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "l2l_jax"
    place = hashlib.sha256(os.fspath(folder).encode()).hexdigest()[:16]
    paths = [parent / f"labels-{split}.npz" for parent in (folder, cache / f"{folder.parent.name}-{place}")]
    paths = list(map(epath.Path, paths))
    for path in paths:
        labels = _read(path, fingerprint, len(records))
        if labels is not None:
            return labels
    labels = collect_labels(records, f"labels of {folder.parent.name}/{split}")
    for path in paths:
        try:
            _write(path, fingerprint, labels)
        except OSError as error:
            logger.info("The labels cannot be kept in %s (%s).", path, error)
        else:
            break
    return labels


def collect_labels(records: Sequence[bytes], title: str, processes: int | None = None) -> np.ndarray:
    """Read the labels of all records, in parallel if there are many; `title` is shown meanwhile."""
    count = len(records)
    chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    if processes is None:
        processes = min(MAX_PROCESSES, len(usable_cpus())) if count >= PARALLEL_FROM else 1
    read = functools.partial(_labels_of, records)
    parts = []
    with (
        Progress(title, count, unit="record") as progress,
        concurrent.futures.ProcessPoolExecutor(
            processes,
            multiprocessing.get_context("spawn"),  # JAX's threads do not survive a fork
        ) as pool,
    ):
        for part in map(read, chunks) if processes == 1 else pool.map(read, chunks):
            parts.append(part)
            progress.update(len(part))
    labels = np.concatenate(parts)
    small = labels.min() >= np.iinfo(np.int16).min and labels.max() <= np.iinfo(np.int16).max
    return labels.astype(np.int16 if small else np.int32)


def _labels_of(records: Sequence[bytes], chunk: range) -> np.ndarray:
    labels = np.empty(len(chunk), np.int64)
    for place, index in enumerate(chunk):
        try:
            values = parse_example(records[index])["label"].int64_list.value
        except (RuntimeError, ValueError, DecodeError) as error:
            raise UserError(
                f"Record {index} cannot be read ({error}); copy or prepare the data set again."
            ) from error
        if len(values) != 1:
            raise UserError(
                f"Record {index} has {len(values)} labels instead of one; prepare the data set again."
            )
        labels[place] = values[0]
    return labels


def fingerprint_of(folder: epath.Path, split: str) -> str:
    """Compute a checksum that changes when the data set or the files of the split do."""
    digest = hashlib.sha256((folder / "dataset_info.json").read_bytes())
    for path in sorted(folder.iterdir()):
        if f"-{split}." in path.name and "-of-" in path.name:
            digest.update(f"{path.name} {path.stat().length}\n".encode())
    return digest.hexdigest()


def _read(path: epath.Path, fingerprint: str, count: int) -> np.ndarray | None:
    try:
        with np.load(io.BytesIO(path.read_bytes())) as index:
            if str(index["fingerprint"]) == fingerprint and index["labels"].shape == (count,):
                return index["labels"]
            logger.info("%s was made of other files; the labels are read again.", path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.info("%s cannot be read (%s); the labels are read again.", path, error)
    return None


def _write(path: epath.Path, fingerprint: str, labels: np.ndarray) -> None:
    """Write an index whole or not at all; several processes may do it at once, also to a bucket."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.parent / f"{path.name}.{os.getpid()}.unfinished"
    try:
        content = io.BytesIO()
        np.savez_compressed(content, labels=labels, fingerprint=fingerprint)
        unfinished.write_bytes(content.getvalue())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
