"""Sources of TensorFlow Datasets, read without TensorFlow and without decoding.

Reading a label requires reading the entire record. For ImageNet this is 140 GB, so labels are read by several
processes and cached.
"""

import concurrent.futures
import contextlib
import difflib
import functools
import hashlib
import io
import logging
import multiprocessing
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from google.protobuf.json_format import ParseError
from google.protobuf.message import DecodeError

from l2l_jax.data.config import OTHER_SOURCES, SourceConfig
from l2l_jax.data.records import Record, Source, SplitName, Subset, hold_out
from l2l_jax.errors import UserError
from l2l_jax.utils.progress import Progress
from l2l_jax.utils.runtime import usable_cpus, user_cache

logger = logging.getLogger(__name__)
# Data sets to suggest for misspelled names
PUBLISHED = ("imagenet2012", "places365_small", "coco/2017")
# Splits of test images; for Places-365 and ImageNet, only "validation" has labels
TEST_SPLITS = ("validation", "test")
# Features with the file name of an image in the original data set
NAME_FEATURES = ("file_name", "filename", "image/filename")
# Records that a process reads at a time, minimum records to read in parallel, and maximum processes
CHUNK, PARALLEL_FROM, MAX_PROCESSES = 2000, 20_000, 16
DAMAGED = (RuntimeError, ValueError, DecodeError)  # errors that array_record and protobuf raise


class TfdsSource(Source):
    """A split of a prepared data set: serialized `tf.train.Example`s, name, and checksum of the files."""

    def __init__(self, records: Sequence[bytes], labels: np.ndarray, class_names: Any, *split: str):
        self._records, self.labels, self.class_names = records, labels, class_names
        self._split_name, self._fingerprint = split

    def __getitem__(self, index: int) -> Record:
        name = self.name(index)
        try:
            features = _parse_example(self._records[index])
        except DAMAGED as error:
            raise OSError(f"{name} cannot be read: {error}") from error
        feature = next((feature for feature in NAME_FEATURES if feature in features), None)
        if feature is not None:
            file = features[feature].bytes_list.value[0].decode("utf-8", "replace")
            name = f"{self._split_name}/{file}"
        image = features["image"].bytes_list.value[0]
        return {"image": image, "label": int(self.labels[index]), "name": name}

    def name(self, index: int) -> str:
        """Return the index of a record, prefixed by data set and split."""
        return f"{self._split_name}/{index}"

    def key(self, index: int) -> bytes:
        """Return the checksum of the files followed by the index."""
        return f"{self._fingerprint} {index}".encode()


def _parse_example(record: bytes) -> Mapping[str, Any]:
    """Return the features of a serialized `tf.train.Example`, by name."""
    from tensorflow_datasets.proto import tf_example_pb2  # late import, for fast startup

    return tf_example_pb2.Example.FromString(bytes(record)).features.feature


def open_tfds(config: SourceConfig, split: SplitName) -> TfdsSource | Subset:
    """Open a prepared TFDS data set: the "train" split, or the "validation" or "test" split for testing.

    If neither of the latter exists, a fraction of each class of the training images is held out. Images
    without labels form a single class, named like the data set.
    """
    import tensorflow_datasets as tfds

    folder = find_prepared(config)
    if folder is None:
        raise UserError(_missing(config))
    try:
        builder = tfds.builder_from_directory(os.fspath(folder))
    except (OSError, ValueError, KeyError, ParseError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"{folder} is damaged ({reason}). {_again(config)}") from error
    info = builder.info
    if not isinstance(dict(info.features).get("image"), tfds.features.Image):
        features = ", ".join(sorted(info.features))
        raise UserError(f"{config.source} has no images: its features are {features}.")
    filled = (name for name in TEST_SPLITS if name in info.splits and info.splits[name].num_examples)
    test_split = next(filled, None)
    name = test_split if test_split and split == "test" else "train"
    records = _records(builder, folder, name, config)
    class_names, labels = (info.name,), np.zeros(len(records), np.int32)
    if "label" in info.features:
        labels = load_labels(folder, name, records)
        names = getattr(info.features["label"], "names", None)  # None for numeric labels
        class_names = tuple(names or map(str, range(labels.max() + 1)))
    source = TfdsSource(records, labels, class_names, f"{info.name}/{name}", _fingerprint(folder, name))
    if test_split:
        return source
    return Subset(source, hold_out(labels, config.test_fraction, held=split == "test"))


def _records(builder: Any, folder: epath.Path, split: str, config: SourceConfig) -> Sequence[bytes]:
    """Return the serialized examples of a split after checking that all of its files exist."""
    import tensorflow_datasets as tfds

    info = builder.info
    if split not in info.splits:
        raise UserError(f"{folder} holds no split {split!r}, but {', '.join(info.splits)}. {_again(config)}")
    present = {entry.name for entry in folder.iterdir()}
    missing = [shard for shard in info.splits[split].filenames if shard not in present]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of its files, the first being {missing[0]}. {_again(config)}"
        )
    try:
        return builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    except NotImplementedError:
        raise UserError(
            f"{folder} is in the format {info.file_format.value}, which has no random access. "
            f"{_again(config)}"
        ) from None


def _again(config: SourceConfig) -> str:
    return f"Delete the folder, or choose another data_dir, and run: {_prepare_command(config)}"


def find_prepared(config: SourceConfig) -> epath.Path | None:
    """Find the newest prepared version of a data set, or the specified version; None if there is none."""
    name, _, version = config.source.partition(":")
    place = data_dir(config) / name
    try:
        versions = [entry for entry in place.iterdir() if _is_prepared(entry)] if place.is_dir() else []
    except ImportError as error:
        raise UserError(f"Reading {place} needs gcsfs ({error}): pip install gcsfs.") from error
    if version:
        versions = [entry for entry in versions if entry.name == version]
    return max(versions, key=lambda entry: tuple(map(int, entry.name.split("."))), default=None)


def data_dir(config: SourceConfig) -> epath.Path:
    """Return the folder of prepared data sets."""
    from tensorflow_datasets.core import constants

    return epath.Path(config.path or constants.DATA_DIR).expanduser()


def _prepare_command(config: SourceConfig) -> str:
    where = f" --data_dir={config.path}" if config.path else ""
    return f"python -m l2l_jax.data.prepare {config.source}{where}"


def _missing(config: SourceConfig) -> str:
    """Return the error message for a data set that was not found."""
    place = data_dir(config) / config.source.partition(":")[0]
    setting, sources = f"{config.where}.source is {config.source!r}", ", ".join(OTHER_SOURCES)
    variants = [e.name for e in place.iterdir() if e.is_dir()] if place.is_dir() else []
    ready = [f"{config.source}/{v}" for v in variants if any(map(_is_prepared, (place / v).iterdir()))]
    if ready:
        return f"{setting}; prepared: {', '.join(sorted(ready))}."
    near = difflib.get_close_matches(config.source, [*OTHER_SOURCES, *PUBLISHED], n=1)
    guess = f" Did you mean {near[0]!r}?" if near and near[0] != config.source else ""
    if not re.fullmatch(r"[a-z]\w*(/[\w.\-]+)?(:[\d.]+)?", config.source):
        return f"{setting}; known sources: {sources}, or a TFDS data set.{guess}"
    return (
        f"{setting}, which is neither one of {sources} nor a data set of TensorFlow Datasets prepared "
        f"in {data_dir(config)}.{guess} To prepare it, run: {_prepare_command(config)}"
    )


def _is_prepared(folder: epath.Path) -> bool:
    return re.fullmatch(r"\d+\.\d+\.\d+", folder.name) is not None and (folder / "dataset_info.json").exists()


def load_labels(folder: epath.Path, split: str, records: Sequence[bytes]) -> np.ndarray:
    """Load the class ids of a split `[record]`, int16 or int32.

    They are read from the records once and cached with a fingerprint of the files: next to the data, or in
    the user's cache folder if the data is read-only.
    """
    fingerprint = _fingerprint(folder, split)
    place, parents = hashlib.sha256(os.fspath(folder).encode()).hexdigest()[:16], [folder]
    with contextlib.suppress(UserError):  # no home directory
        parents.append(epath.Path(user_cache()) / f"{folder.parent.name}-{place}")
    paths = [parent / f"labels-{split}.npz" for parent in parents]
    for path in paths:
        labels = _read_index(path, fingerprint, len(records))
        if labels is not None:
            return labels
    labels = collect_labels(records, f"labels of {folder.parent.name}/{split}")
    for path in paths:
        try:
            _write_index(path, fingerprint, labels)
            break
        except OSError as error:
            logger.info("The labels cannot be cached in %s (%s).", path, error)
    return labels


def collect_labels(records: Sequence[bytes], title: str, processes: int | None = None) -> np.ndarray:
    """Read the labels of all records, in parallel if there are many; `title` names the progress bar."""
    count = len(records)
    chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    if processes is None:
        processes = min(MAX_PROCESSES, len(usable_cpus())) if count >= PARALLEL_FROM else 1
    read = functools.partial(_labels_of, records)
    context = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork
    parts = []
    with (
        Progress(title, count, unit="record") as progress,
        concurrent.futures.ProcessPoolExecutor(processes, context) as pool,
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
            values = _parse_example(records[index])["label"].int64_list.value
        except DAMAGED as error:
            raise UserError(
                f"Record {index} cannot be read ({error}); copy or prepare the data set again."
            ) from error
        if len(values) != 1:
            raise UserError(f"Record {index} has {len(values)} labels instead of one; prepare them again.")
        labels[place] = values[0]
    return labels


def _fingerprint(folder: epath.Path, split: str) -> str:
    """Compute a checksum of the data set's info and the names and sizes of the split's files."""
    digest = hashlib.sha256((folder / "dataset_info.json").read_bytes())
    for path in sorted(folder.iterdir()):
        if f"-{split}." in path.name and "-of-" in path.name:
            digest.update(f"{path.name} {path.stat().length}\n".encode())
    return digest.hexdigest()


def _read_index(path: epath.Path, fingerprint: str, count: int) -> np.ndarray | None:
    try:
        with np.load(io.BytesIO(path.read_bytes())) as index:
            if str(index["fingerprint"]) == fingerprint and index["labels"].shape == (count,):
                return index["labels"]
            logger.info("%s belongs to other files; the labels are read again.", path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.info("%s cannot be read (%s); the labels are read again.", path, error)
    return None


def _write_index(path: epath.Path, fingerprint: str, labels: np.ndarray) -> None:
    """Write an index atomically; several processes may do so concurrently, including to a bucket."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.parent / f"{path.name}.{os.getpid()}.unfinished"
    try:
        content = io.BytesIO()
        np.savez_compressed(content, labels=labels, fingerprint=fingerprint)
        unfinished.write_bytes(content.getvalue())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
