"""Prepared TensorFlow Datasets, read without TensorFlow, and the index of their labels."""

import collections
import os
import pickle
import re
import shutil

import numpy as np
import pytest
from etils import epath

from l2l_jax.data.config import DataConfig, ProxyConfig, SourceConfig
from l2l_jax.data.sources import open_source
from l2l_jax.data.splits import evaluation_sets, training_sets
from l2l_jax.data.tfds_source import collect_labels, find_prepared, load_labels
from l2l_jax.errors import UserError
from tests.data import small_archives
from tests.data.pictures import Records


def opened(data_dir, name, split="train", **fields):
    return open_source(SourceConfig(name, str(data_dir), **fields), split, 8)


def records(source):
    return [source[i] for i in range(len(source))]


def test_imagenet_images_and_labels(prepared):
    source = opened(prepared, "imagenet2012")
    for record in records(source):
        wnid, number = re.fullmatch(r"imagenet2012/train/(n\d{8})_(\d+)\.JPEG", record["name"]).groups()
        assert record["image"] == small_archives.picture(int(wnid[1:]) + int(number))
        assert source.class_names[record["label"]] == wnid
    count = collections.Counter(source.class_names[label] for label in source.labels)
    assert count == small_archives.IMAGENET_TRAIN
    source = opened(prepared, "imagenet2012", "test")  # a sea snake, an alp and a Shetland sheepdog
    classes = {record["name"][-13:-5]: source.class_names[record["label"]] for record in records(source)}
    assert classes == {"00000001": "n01751748", "00000002": "n09193705", "00000003": "n02105855"}


def test_places_and_single_class_coco(prepared):
    train, test = opened(prepared, "places365_small"), opened(prepared, "places365_small", "test")
    folders = {record["name"]: train.class_names[record["label"]] for record in records(train)}
    assert len(folders) == 7
    for name, class_name in folders.items():
        assert name.startswith("places365_small/train/data_256") and name.split("/")[4] == class_name
    classes = {r["name"][-12:]: test.class_names[r["label"]] for r in records(test)}
    assert classes == {"00000001.jpg": "beach", "00000002.jpg": "archive"}
    train, test = opened(prepared, "coco/2017"), opened(prepared, "coco/2017", "test")
    assert train.class_names == ("coco",) and list(train.labels) == [0] * 4
    assert {r["image"] for r in records(train)} == {small_archives.picture(9 + i) for i in range(4)}
    assert {r["name"] for r in records(test)} == {f"coco/validation/{i:012}.jpg" for i in (1, 2)}


def test_published_splits_and_proxies(prepared):
    """Goldfish is in the forget list, llama in the retain list, tench in neither; COCO is another source."""
    lists = dict(forget=("n01443537",), retain=("llama",))
    data = DataConfig("imagenet2012", str(prepared), proxy=("rest",), **lists)
    source = opened(prepared, "imagenet2012")
    sets = training_sets(data, source, 8)
    assert {source.class_names[label] for label in sets.forget.labels} == {"n01443537"}
    assert len(sets.forget) == 4 and len(sets.retain) == 3 + 0
    assert {source.class_names[label] for label in sets.retain.labels} == {"n01440764"}
    with pytest.raises(UserError, match="retain set is empty: config.data.retain selects no test image"):
        evaluation_sets(data, opened(prepared, "imagenet2012", "test"))
    mixed = DataConfig("imagenet2012", str(prepared), proxy=("tench", ProxyConfig("coco/2017")), **lists)
    mixture = training_sets(mixed, source, 8).retain
    names = [mixture[i]["name"].partition("/")[0] for i in range(len(mixture))]
    assert collections.Counter(names) == {"imagenet2012": 4, "coco": 4}  # three tench images, one twice


def test_fraction_is_held_out_without_a_test_split(prepared):
    folder = prepared / "imagenet2012" / "5.1.0"
    info = (folder / "dataset_info.json").read_text()
    start = info.index('    {\n      "filepathTemplate"', info.index('"name": "train"'))
    end = info.index("]\n    }", start) + len("]\n    }")
    (folder / "dataset_info.json").write_text(info[:start].rstrip().rstrip(",") + info[end:])
    train, test = opened(prepared, "imagenet2012"), opened(prepared, "imagenet2012", "test")
    names = [{r["name"] for r in records(source)} for source in (train, test)]
    assert len(names[0]) == 6 and len(names[1]) == 3 and not names[0] & names[1]
    assert set(np.bincount(test.labels)) == {0, 1}


def test_unprepared_data_sets_are_user_errors(prepared):
    for name, message in (
        ("imagenet2013", "To prepare it, run: python -m l2l_jax.data.prepare imagenet2013 --data_dir="),
        ("imagenet2012:5.0.0", "prepare imagenet2012:5.0.0"),
        ("coco", "config.data.source is 'coco'; prepared: coco/2017"),
        ("Digits!", "known sources: digits, .*, csv, or a TFDS.* Did you mean 'digits'"),
        ("foldr", "is neither one of digits, .*, csv.* Did you mean 'folder'"),
    ):
        with pytest.raises(UserError, match=message):
            opened(prepared, name)
    with pytest.raises(UserError, match="prepare mnist$"):
        open_source(SourceConfig("mnist"), "train", 8)


def test_versions_missing_files_and_other_formats(prepared):
    place = prepared / "coco" / "2017"
    shutil.copytree(place / "1.1.0", place / "1.0.9")
    for name, version in (("coco/2017", "1.1.0"), ("coco/2017:1.0.9", "1.0.9")):
        assert find_prepared(SourceConfig(name, str(prepared))).name == version
    next((place / "1.1.0").glob("*-train.array_record*")).unlink()
    with pytest.raises(UserError, match="lacks 1 of its files, the first being coco-train"):
        opened(prepared, "coco/2017")
    folder = prepared / "places365_small" / "2.1.0"
    edit(folder / "dataset_info.json", "array_record", "tfrecord")
    for shard in folder.glob("*array_record*"):
        shard.rename(folder / shard.name.replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match="format tfrecord, which has no random access. Delete the folder"):
        opened(prepared, "places365_small")


def test_damaged_files_raise_os_error_or_user_error(prepared):
    """A shard with a damaged record, detected in training and while reading labels."""
    folder = prepared / "imagenet2012" / "5.1.0"
    source = opened(prepared, "imagenet2012")
    shard = next(folder.glob("*-train.array_record*"))
    content = shard.read_bytes()
    shard.write_bytes(content[:200] + bytes(5000) + content[5200:])
    (folder / "labels-train.npz").unlink()
    with pytest.raises(OSError, match="imagenet2012/train/0 cannot be read"):
        pickle.loads(pickle.dumps(source))[0]
    with pytest.raises(UserError, match="Record 0 cannot be read .* prepare the data set again"):
        opened(prepared, "imagenet2012")


def test_prepared_data_sets_in_a_bucket(prepared, bucket):
    """Records are read by array_record itself, which cannot be faked."""
    labels = opened(prepared, "imagenet2012").labels
    for path in (prepared / "imagenet2012").rglob("*"):
        if path.is_file():
            copy = epath.Path(bucket) / "tfds" / path.relative_to(prepared)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    source = opened(f"{bucket}/tfds", "imagenet2012")
    np.testing.assert_array_equal(source.labels, labels)
    (shard,) = source._records.data_source._paths
    assert shard.startswith("gs://bucket/tfds/imagenet2012/5.1.0/imagenet2012-train.array_record-")


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("dataset_info.json", "{", "", "2.1.0 is damaged .*prepare places365_small"),
        ("dataset_info.json", '"name": "train"', '"name": "training"', "holds no split 'train', but"),
        (
            "features.json",
            '"image": {\n                "image"',
            '"photo": {\n                "image"',
            "has no images: its features are filename, label, photo",
        ),
    ],
)
def test_damaged_descriptions_and_other_features_are_named(prepared, file, old, new, message):
    edit(prepared / "places365_small" / "2.1.0" / file, old, new)
    with pytest.raises(UserError, match=message):
        opened(prepared, "places365_small")


def test_numeric_labels(prepared):
    features = prepared / "places365_small" / "2.1.0" / "features.json"
    start = features.read_text().index('"label": {')
    text = features.read_text()
    number = """"label": {
                "tensor": {"dtype": "int64", "encoding": "none", "shape": {}},
                "pythonClassName": "tensorflow_datasets.core.features.scalar.Scalar"
            }
        }
    },
    "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict"
}"""
    features.write_text(text[:start] + number)
    source = opened(prepared, "places365_small")
    assert source.class_names == tuple(map(str, range(49))) and set(source.labels) == {0, 14, 48}


LABELS = np.random.default_rng(0).integers(0, 1000, 5000)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data set's folder, and a temporary cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = tmp_path / "flowers" / "1.0.0"
    place.mkdir(parents=True)
    (place / "dataset_info.json").write_text("{}")
    (place / "flowers-train.array_record-00000-of-00001").write_bytes(b"12345")
    return epath.Path(place)


def test_labels_are_cached_next_to_the_data(folder):
    records = Records(LABELS)
    np.testing.assert_array_equal(load_labels(folder, "train", records), LABELS)
    assert records.read == 5000 and (folder / "labels-train.npz").exists()
    again = load_labels(folder, "train", records)
    np.testing.assert_array_equal(again, LABELS)
    assert records.read == 5000 and again.dtype == np.int16
    assert not [path.name for path in folder.iterdir() if "unfinished" in path.name]


def test_cached_labels_of_other_data_are_ignored(folder):
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


def test_labels_of_read_only_data_are_stored_in_the_cache_folder(folder, tmp_path, monkeypatch):
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


def test_collect_labels():
    np.testing.assert_array_equal(collect_labels(Records(LABELS), "labels", processes=2), LABELS)
    labels = collect_labels(Records([-1, 70_000]), "labels")
    assert labels.dtype == np.int32 and list(labels) == [-1, 70_000]
    with pytest.raises(UserError, match="Record 1 has 2 labels instead of one"):
        collect_labels(Records([3, [1, 2]]), "labels")
