"""Labels of prepared data sets: read once, kept, and not believed when the data changed."""

import os

import numpy as np
import pytest
from etils import epath
from tensorflow_datasets.proto import tf_example_pb2

from l2l_jax.data.tfds_source import collect_labels, load_labels
from l2l_jax.errors import UserError


class Records:
    """Serialised examples whose labels are given; counts how many were read in this process."""

    def __init__(self, labels):
        self.labels, self.read = list(labels), 0

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        self.read += 1
        example = tf_example_pb2.Example()
        example.features.feature["label"].int64_list.value.extend(np.atleast_1d(self.labels[index]).tolist())
        example.features.feature["image"].bytes_list.value.append(b"no image")
        return example.SerializeToString()


LABELS = np.random.default_rng(0).integers(0, 1000, 5000)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data set's folder, and a cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = tmp_path / "flowers" / "1.0.0"
    place.mkdir(parents=True)
    (place / "dataset_info.json").write_text("{}")
    (place / "flowers-train.array_record-00000-of-00001").write_bytes(b"12345")
    return epath.Path(place)


def test_labels_are_read_once_and_kept_beside_the_data(folder):
    records = Records(LABELS)
    np.testing.assert_array_equal(load_labels(folder, "train", records), LABELS)
    assert records.read == 5000 and (folder / "labels-train.npz").exists()
    again = load_labels(folder, "train", records)
    np.testing.assert_array_equal(again, LABELS)
    assert records.read == 5000 and again.dtype == np.int16
    assert not [path.name for path in folder.iterdir() if "unfinished" in path.name]


def test_labels_of_other_data_are_not_believed(folder):
    index, shard = folder / "labels-train.npz", folder / "flowers-train.array_record-00000-of-00001"
    load_labels(folder, "train", Records(LABELS))
    for change, count in (
        (lambda: shard.write_bytes(b"123456"), 500),
        (lambda: (folder / "dataset_info.json").write_text("{ }"), 500),
        (lambda: None, 10),
        (lambda: index.write_bytes(index.read_bytes()[:100]), 10),
        (lambda: index.write_bytes(b"not an index"), 10),
    ):
        change()
        records = Records(np.random.default_rng(count).permutation(LABELS)[:count])
        np.testing.assert_array_equal(load_labels(folder, "train", records), records.labels)
        assert records.read == len(records)


def test_labels_of_read_only_data_are_kept_in_the_cache_folder(folder, tmp_path, monkeypatch):
    opened = epath.Path(folder).open.__func__
    posix = type(folder)

    def refuse(self, mode="r", **options):
        if "w" in mode and os.fspath(self).startswith(os.fspath(folder)):
            raise PermissionError(13, "Permission denied", os.fspath(self))
        return opened(self, mode, **options)

    monkeypatch.setattr(posix, "open", refuse)
    records = Records(LABELS)
    for _ in range(2):
        np.testing.assert_array_equal(load_labels(folder, "train", records), LABELS)
    assert records.read == 5000 and not (folder / "labels-train.npz").exists()
    assert len(list((tmp_path / "cache" / "l2l_jax").glob("flowers-*/labels-train.npz"))) == 1


def test_labels_as_they_are_read():
    np.testing.assert_array_equal(collect_labels(Records(LABELS), "labels", processes=2), LABELS)
    labels = collect_labels(Records([-1, 70_000]), "labels")
    assert labels.dtype == np.int32 and list(labels) == [-1, 70_000]
    with pytest.raises(UserError, match="Record 1 has 2 labels instead of one"):
        collect_labels(Records([3, [1, 2]]), "labels")
