"""Folders of IDX files, and the subset of Fashion-MNIST that comes with the package."""

import gzip
import hashlib
import lzma
import struct

import numpy as np
import pytest

from l2l_jax.data import fashion
from l2l_jax.data.config import SourceConfig
from l2l_jax.data.sources import open_source
from l2l_jax.data.transforms import Transform, TransformConfig
from l2l_jax.errors import UserError

IMAGES = struct.pack(">IIII", 0x803, 3, 2, 4) + bytes(range(24))
LABELS = struct.pack(">II", 0x801, 3) + bytes([1, 0, 2])


def write(folder, end="", pack=bytes, images=IMAGES, labels=LABELS, prefixes=("train", "t10k")):
    for prefix in prefixes:
        (folder / f"{prefix}-images-idx3-ubyte{end}").write_bytes(pack(images))
        (folder / f"{prefix}-labels-idx1-ubyte{end}").write_bytes(pack(labels))
    return folder


def open_idx(path, split="train", **fields):
    return open_source(SourceConfig("idx", str(path), **fields), split, 28)


@pytest.mark.parametrize(
    "end, pack, prefixes",
    [
        ("", bytes, ("train", "test")),
        (".gz", gzip.compress, ("train", "t10k")),
        (".xz", lzma.compress, ("train", "t10k")),
    ],
)
def test_images_and_labels(tmp_path, end, pack, prefixes):
    write(tmp_path, end, pack, prefixes=prefixes)
    for split in ("train", "test"):
        source = open_idx(tmp_path, split)
        assert len(source) == 3 and source.class_names == ("0", "1", "2")
        np.testing.assert_array_equal(source.labels, [1, 0, 2])
        record = source[1]
        assert record["label"] == 0 and record["name"] == f"{split}/1"
        assert record["image"].dtype == np.uint8 and record["image"].shape == (2, 4, 3)
        np.testing.assert_array_equal(record["image"][..., 0], [[8, 9, 10, 11], [12, 13, 14, 15]])
        assert np.ptp(record["image"], axis=-1).max() == 0  # gray


def test_other_separator_and_a_test_set_that_lacks_a_class(tmp_path):
    write(tmp_path, prefixes=("train",))
    few = struct.pack(">II", 0x801, 3) + bytes([0, 0, 1])
    (tmp_path / "t10k-images.idx3-ubyte").write_bytes(IMAGES)
    (tmp_path / "t10k-labels.idx1-ubyte").write_bytes(few)
    assert open_idx(tmp_path, "test").class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    "end, images, labels, message",
    [
        ("", LABELS, LABELS, "number 2049, but an IDX file with 3 dimensions of bytes starts with 2051"),
        ("", IMAGES, IMAGES, "number 2051, but an IDX file with 1 dimension of bytes starts with 2049"),
        ("", b"", LABELS, "starts with the magic number 0"),
        ("", IMAGES[:-1], LABELS, "has 23 bytes after its header, which announces 3 × 2 × 4; fetch"),
        ("", IMAGES, LABELS[:3] + b"\1\0\0\0\2ab", "3 images, but train-labels-idx1-ubyte holds 2 labels"),
        ("", IMAGES[:7] + bytes([0]) + IMAGES[8:16], LABELS[:7] + bytes(1), "holds no pixels"),
        (".gz", gzip.compress(IMAGES)[:30], gzip.compress(LABELS), "cannot be decompressed"),
        (".gz", gzip.compress(IMAGES)[:12] + bytes(9), gzip.compress(LABELS), "cannot be decompressed"),
        (".gz", IMAGES, gzip.compress(LABELS), "cannot be decompressed"),
        (".xz", lzma.compress(IMAGES)[:40], lzma.compress(LABELS), "cannot be decompressed"),
    ],
)
def test_damaged_files(tmp_path, end, images, labels, message):
    write(tmp_path, end, images=images, labels=labels)
    with pytest.raises(UserError, match=message) as error:
        open_idx(tmp_path)
    assert "\n" not in str(error.value)


def test_missing_files(tmp_path):
    with pytest.raises(UserError, match="has no file train-images-idx3-ubyte, with or without .gz"):
        open_idx(tmp_path)
    with pytest.raises(UserError, match="path is empty: the source 'idx' needs a folder with train-images"):
        open_idx("")
    with pytest.raises(UserError, match="is a file, but the source 'idx' needs a folder"):
        open_idx(write(tmp_path) / "train-images-idx3-ubyte")


def test_validation_images_are_held_out(tmp_path):
    labels = struct.pack(">II", 0x801, 20) + bytes([0, 1] * 10)
    images = struct.pack(">IIII", 0x803, 20, 1, 1) + bytes(range(20))
    write(tmp_path, images=images, labels=labels)
    kept, held = (open_idx(tmp_path, split, validation_fraction=0.2) for split in ("train", "validation"))
    values = [[int(source[i]["image"][0, 0, 0]) for i in range(len(source))] for source in (kept, held)]
    assert sorted(values[0] + values[1]) == list(range(20))
    np.testing.assert_array_equal(np.bincount(held.labels), [2, 2])


def test_the_subset_of_fashion_mnist():
    """Digests of the decoded pixels and labels, computed from the original files by another program."""
    names = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"]
    digests = {
        "train": "3e4733ae8450a2837c1f62ea9946542fde2197204feb158e5b790257ac34143a",
        "test": "8e8b02fc2db0ff9ed2d481ff30f8bd7cc5c88205cb131d7f4a0c19448f6957c9",
    }
    for split, count in (("train", 500), ("test", 200)):
        source = open_source(SourceConfig("fashion"), split, 28)
        assert list(source.class_names) == names
        np.testing.assert_array_equal(np.bincount(source.labels), [count] * 10)
        pixels = b"".join(source[i]["image"][..., 0].tobytes() for i in range(len(source)))
        assert hashlib.sha256(pixels + bytes(source.labels.tolist())).hexdigest() == digests[split]
    assert sum(len(file.read_bytes()) for file in fashion.FOLDER.iterdir()) < 3_000_000


def test_images_of_other_sizes():
    image = open_source(SourceConfig("fashion"), "test", 14)[0]["image"]
    small = Transform(TransformConfig(), 14, training=False)(image, ())
    assert small.shape == (14, 14, 3) and small.dtype == np.uint8
    np.testing.assert_allclose(small.mean(), image.mean(), atol=2)


def test_a_damaged_package(monkeypatch):
    monkeypatch.setitem(fashion.SHA256, "test", "0" * 64)
    fashion._read.cache_clear()
    with pytest.raises(UserError, match="are not those of this package; reinstall it"):
        open_source(SourceConfig("fashion"), "test", 28)


def test_no_path_for_the_subset():
    with pytest.raises(UserError, match="the source 'fashion' reads no files"):
        open_source(SourceConfig("fashion", "somewhere"), "train", 28)
