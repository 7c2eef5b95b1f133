"""Data sets of TensorFlow Datasets, read without TensorFlow and without decoding."""

import difflib
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from google.protobuf.json_format import ParseError
from google.protobuf.message import DecodeError

from l2l_jax.data.config import OTHER_SOURCES, SourceConfig
from l2l_jax.data.label_index import fingerprint_of, load_labels, parse_example
from l2l_jax.data.records import Record, SplitName, Subset, held_out
from l2l_jax.errors import UserError

PUBLISHED = ("imagenet2012", "places365_small", "coco/2017")
"""Data sets that misspelled names are compared with."""

TEST_SPLITS = ("validation", "test")
"""Splits of test images; of Places-365 and ImageNet only "validation" has labels."""

NAME_FEATURES = ("file_name", "filename", "image/filename")
"""Features that name an image's file in the original data set."""


class TfdsSource:
    """A split of a prepared data set.

    Args:
      records: Random access to its records, serialized `tf.train.Example`s.
      labels: Class ids.
      class_names: Names of the class ids.
      split_name: Name of the data set and the split.
      fingerprint: Checksum of its files.
    """

    def __init__(
        self,
        records: Sequence[bytes],
        labels: np.ndarray,
        class_names: tuple[str, ...],
        split_name: str,
        fingerprint: str,
    ):
        self._records, self._split_name, self._fingerprint = records, split_name, fingerprint
        self.labels, self.class_names = labels, class_names

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        try:
            features = parse_example(self._records[index])
        except (RuntimeError, ValueError, DecodeError) as error:  # of array_record and of protobuf
            raise OSError(f"{self.name(index)} cannot be read: {error}") from error
        name = self.name(index)
        for feature in NAME_FEATURES:
            if feature in features:
                file = features[feature].bytes_list.value[0].decode("utf-8", "replace")
                name = f"{self._split_name}/{file}"
                break
        image = features["image"].bytes_list.value[0]
        return {"image": image, "label": int(self.labels[index]), "name": name}

    def name(self, index: int) -> str:
        """Return the number of a record, with the data set and the split."""
        return f"{self._split_name}/{index}"

    def key(self, index: int) -> bytes:
        """Return the checksum of the files, and the index."""
        return f"{self._fingerprint} {index}".encode()


def open_tfds(config: SourceConfig, split: SplitName) -> TfdsSource | Subset:
    """Open a prepared TFDS data set: its "train" split, or for testing its "validation" or "test" split.

    Where neither exists, a share of each class of the training images is held out. Images without
    labels are of one class, called like the data set.

    Raises:
      UserError: It is not prepared, damaged, not in random access files, or not of images.
    """
    import tensorflow_datasets as tfds

    folder = prepared_folder(config)
    try:
        builder = tfds.builder_from_directory(os.fspath(folder))
    except (OSError, ValueError, KeyError, ParseError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"{folder} is damaged ({reason}). {_again(config)}") from error
    info = builder.info
    if not isinstance(dict(info.features).get("image"), tfds.features.Image):
        features = ", ".join(sorted(info.features))
        raise UserError(f"{config.source} has no images: its features are {features}.")
    tests = [name for name in TEST_SPLITS if name in info.splits and info.splits[name].num_examples]
    name = tests[0] if tests and split == "test" else "train"
    records = _records(builder, folder, name, config)
    class_names, labels = (info.name,), np.zeros(len(records), np.int32)
    if "label" in info.features:
        labels = load_labels(folder, name, records)
        known = getattr(info.features["label"], "names", None)  # numbers alone have none
        class_names = tuple(known or map(str, range(labels.max() + 1)))
    fingerprint = fingerprint_of(folder, name)
    source = TfdsSource(records, labels, class_names, f"{info.name}/{name}", fingerprint)
    if tests:
        return source
    names = [b"%d" % i for i in range(len(labels))]
    return Subset(source, held_out(names, labels, config.test_fraction)[split == "test"])


def _records(builder: Any, folder: epath.Path, split: str, config: SourceConfig) -> Sequence[bytes]:
    """Return the serialized examples of a split, all of whose files are there."""
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
    return f"Delete the folder, or choose another data_dir, and run: {prepare_command(config)}"


def prepared_folder(config: SourceConfig) -> epath.Path:
    """Find the folder of the newest prepared version of a data set.

    Raises:
      UserError: There is none; the message says what to run.
    """
    folder = find_prepared(config)
    if folder is None:
        raise UserError(_missing(config))
    return folder


def find_prepared(config: SourceConfig) -> epath.Path | None:
    """Find the newest prepared version of a data set, or the one that is named; None: there is none.

    Raises:
      UserError: Remote files cannot be read.
    """
    name, _, version = config.source.partition(":")
    place = data_dir(config) / name
    try:
        versions = [entry for entry in place.iterdir() if _is_prepared(entry)] if place.is_dir() else []
    except ImportError as error:
        raise UserError(f"Reading {place} needs gcsfs ({error}): pip install gcsfs.") from error
    if version:
        versions = [entry for entry in versions if entry.name == version]
    return max(versions, key=lambda entry: _version(entry.name), default=None)


def data_dir(config: SourceConfig) -> epath.Path:
    """Return the folder of prepared data sets."""
    from tensorflow_datasets.core import constants

    return epath.Path(config.path or constants.DATA_DIR).expanduser()


def prepare_command(config: SourceConfig) -> str:
    """Return the command that prepares a data set."""
    where = f" --data_dir={config.path}" if config.path else ""
    return f"python -m l2l_jax.data.prepare {config.source}{where}"


def _missing(config: SourceConfig) -> str:
    """Return the message about a data set that is not there."""
    place = data_dir(config) / config.source.partition(":")[0]
    given, known = f"{config.where}.source is {config.source!r}", ", ".join(OTHER_SOURCES)
    variants = [e.name for e in place.iterdir() if e.is_dir()] if place.is_dir() else []
    ready = [f"{config.source}/{v}" for v in variants if any(map(_is_prepared, (place / v).iterdir()))]
    if ready:
        return f"{given}; prepared are {', '.join(sorted(ready))}."
    near = difflib.get_close_matches(config.source, [*OTHER_SOURCES, *PUBLISHED], n=1)
    guess = f" Did you mean {near[0]!r}?" if near and near[0] != config.source else ""
    if not re.fullmatch(r"[a-z]\w*(/[\w.\-]+)?(:[\d.]+)?", config.source):
        return f"{given}; known sources: {known}, or a TFDS data set.{guess}"
    return (
        f"{given}, which is neither one of {known} nor a data set of TensorFlow Datasets that is prepared in "
        f"{data_dir(config)}.{guess} To prepare it, run: {prepare_command(config)}"
    )


def _is_prepared(folder: epath.Path) -> bool:
    return re.fullmatch(r"\d+\.\d+\.\d+", folder.name) is not None and (folder / "dataset_info.json").exists()


def _version(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.split("."))
