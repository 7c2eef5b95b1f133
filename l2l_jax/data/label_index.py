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
import zipfile
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath
from google.protobuf.message import DecodeError

from l2l_jax.errors import UserError
from l2l_jax.utils.progress import Progress
from l2l_jax.utils.runtime import usable_cpus, user_cache

logger = logging.getLogger(__name__)

CHUNK = 2000
"""Records that a process reads at a time."""

PARALLEL_FROM = 20_000
"""Records from which on it is worth starting processes."""

MAX_PROCESSES = 16


def parse_example(record: bytes):
    """The features of a serialised `tf.train.Example`, by name.

    Raises:
      google.protobuf.message.DecodeError: it is none.
    """
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(bytes(record)).features.feature


def load_labels(folder: epath.Path, split: str, records: Sequence[bytes]) -> np.ndarray:
    """The class ids of a split `[record]`, int16 or int32.

    They come from the index beside the data or in the user's cache folder, if one was made of the
    same files; otherwise they are read from the records, and the index is written: beside the data,
    or in the cache folder where the data is read-only.

    Args:
      folder: of the prepared data set.
      split: its name.
      records: random access to the split's serialised examples; it can be pickled.

    Raises:
      UserError: a record without a label.
    """
    fingerprint = fingerprint_of(folder, split)
    places = (folder / f"labels-{split}.npz", _cache_file(folder, split))
    for place in places:
        labels = _read(place, fingerprint, len(records))
        if labels is not None:
            return labels
    labels = collect_labels(records, f"labels of {folder.parent.name}/{split}")
    for place in places:
        try:
            _write(place, fingerprint, labels)
        except OSError as error:
            logger.info("The labels cannot be kept in %s (%s).", place, error)
        else:
            break
    return labels


def collect_labels(records: Sequence[bytes], title: str, processes: int | None = None) -> np.ndarray:
    """Read the labels of all records, in parallel if there are many; `title` is shown meanwhile."""
    starts = range(0, len(records), CHUNK)
    chunks = [range(start, min(start + CHUNK, len(records))) for start in starts]
    if processes is None:
        processes = min(MAX_PROCESSES, len(usable_cpus())) if len(records) >= PARALLEL_FROM else 1
    parts = []
    with Progress(title, len(records), unit="record") as progress:
        for part in _in_order(records, chunks, processes):
            parts.append(part)
            progress.update(len(part))
    labels = np.concatenate(parts)
    small = labels.min() >= np.iinfo(np.int16).min and labels.max() <= np.iinfo(np.int16).max
    return labels.astype(np.int16 if small else np.int32)


def _in_order(records: Sequence[bytes], chunks: Sequence[range], processes: int) -> Iterator[np.ndarray]:
    read = functools.partial(_labels_of, records)
    if processes == 1:
        yield from map(read, chunks)
        return
    context = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork
    with concurrent.futures.ProcessPoolExecutor(processes, context) as pool:
        yield from pool.map(read, chunks)


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
    """A checksum that changes when the data set or the files of the split do."""
    digest = hashlib.sha256((folder / "dataset_info.json").read_bytes())
    shards = sorted(path for path in folder.iterdir() if f"-{split}." in path.name and "-of-" in path.name)
    for shard in shards:
        digest.update(f"{shard.name} {shard.stat().length}\n".encode())
    return digest.hexdigest()


def _cache_file(folder: epath.Path, split: str) -> epath.Path:
    place = hashlib.sha256(os.fspath(folder).encode()).hexdigest()[:16]
    return epath.Path(user_cache()) / f"{folder.parent.name}-{place}" / f"labels-{split}.npz"


def _read(place: epath.Path, fingerprint: str, count: int) -> np.ndarray | None:
    try:
        with np.load(io.BytesIO(place.read_bytes())) as index:
            if str(index["fingerprint"]) == fingerprint and index["labels"].shape == (count,):
                return index["labels"]
            logger.info("%s is of other files; the labels are read anew.", place)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.info("%s cannot be read (%s); the labels are read anew.", place, error)
    return None


def _write(place: epath.Path, fingerprint: str, labels: np.ndarray) -> None:
    """Whole or not at all, though several processes may do it at once."""
    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished = place.parent / f"{place.name}.{os.getpid()}.unfinished"
    try:
        content = io.BytesIO()
        np.savez_compressed(content, labels=labels, fingerprint=fingerprint)
        unfinished.write_bytes(content.getvalue())
        unfinished.replace(place)
    finally:
        unfinished.unlink(missing_ok=True)
