"""Sources of arrays: digits, Fashion-MNIST, IDX and NumPy files, noise and generated images."""

import gzip
import hashlib
import lzma
import pickle
import struct

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from l2l_jax.data import arrays
from l2l_jax.data.arrays import EXPONENTS, GeneratedImages, NoiseImages, open_digits, spectrum_noise
from l2l_jax.data.config import SourceConfig
from l2l_jax.data.sources import open_source
from l2l_jax.errors import UserError


def test_digits_match_scikit_learn():
    """The split is that of scikit-learn's function, one in four of every class for testing."""
    digits = load_digits()
    splits = train_test_split(np.arange(1797), test_size=0.25, stratify=digits.target, random_state=0)
    for split, indices in zip(("train", "test"), splits, strict=True):
        source = open_digits(split, 8)
        for place, index in enumerate(sorted(indices)):
            record = source[place]
            assert record["name"] == f"digits/{index}" and record["label"] == digits.target[index]
            expected = np.repeat(digits.images[index][..., None] / 16, 3, axis=-1)
            np.testing.assert_allclose(record["image"], expected, atol=1e-7)
        assert len(source) == len(indices)
    with pytest.raises(ValueError, match="read-only"):
        source[0]["image"][0] = 0  # sources share a read-only array


IMAGES = struct.pack(">IIII", 0x803, 3, 2, 4) + bytes(range(24))
LABELS = struct.pack(">II", 0x801, 3) + bytes([1, 0, 2])


def write(folder, end="", pack=bytes, images=IMAGES, labels=LABELS, prefixes=("train", "t10k")):
    for prefix in prefixes:
        (folder / f"{prefix}-images-idx3-ubyte{end}").write_bytes(pack(images))
        (folder / f"{prefix}-labels-idx1-ubyte{end}").write_bytes(pack(labels))
    return folder


def open_idx(path, split="train"):
    return open_source(SourceConfig("idx", str(path)), split, 28)


FORMS = [("", bytes, ("train", "test")), (".gz", gzip.compress, ("train", "t10k"))]


@pytest.mark.parametrize("end, pack, prefixes", [*FORMS, (".xz", lzma.compress, ("train", "t10k"))])
def test_read_idx_files(tmp_path, end, pack, prefixes):
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


def test_idx_alternative_separator_and_missing_test_class(tmp_path):
    write(tmp_path, prefixes=("train",))
    (tmp_path / "t10k-images.idx3-ubyte").write_bytes(IMAGES)
    (tmp_path / "t10k-labels.idx1-ubyte").write_bytes(struct.pack(">II", 0x801, 3) + bytes([0, 0, 1]))
    assert open_idx(tmp_path, "test").class_names == ("0", "1", "2")


# Without a time stamp, which would make test ids differ between workers
ZIPPED_IMAGES, ZIPPED_LABELS = gzip.compress(IMAGES, mtime=0), gzip.compress(LABELS, mtime=0)


@pytest.mark.parametrize(
    "end, images, labels, message",
    [
        ("", LABELS, LABELS, "number 2049, but an IDX file with 3 dimensions of bytes starts with 2051"),
        ("", IMAGES, IMAGES, "number 2051, but an IDX file with 1 dimension of bytes starts with 2049"),
        ("", b"", LABELS, "starts with the magic number 0"),
        ("", IMAGES[:-1], LABELS, "has 23 bytes after its header, which announces 3 × 2 × 4; fetch"),
        ("", IMAGES, LABELS[:3] + b"\1\0\0\0\2ab", "3 images, but train-labels-idx1-ubyte holds 2 labels"),
        ("", IMAGES[:7] + bytes([0]) + IMAGES[8:16], LABELS[:7] + bytes(1), "holds no pixels"),
        (".gz", ZIPPED_IMAGES[:30], ZIPPED_LABELS, "cannot be decompressed"),
        (".gz", ZIPPED_IMAGES[:12] + bytes(9), ZIPPED_LABELS, "cannot be decompressed"),
        (".gz", IMAGES, ZIPPED_LABELS, "cannot be decompressed"),
        (".xz", lzma.compress(IMAGES)[:40], lzma.compress(LABELS), "cannot be decompressed"),
    ],
)
def test_damaged_idx_files(tmp_path, end, images, labels, message):
    write(tmp_path, end, images=images, labels=labels)
    with pytest.raises(UserError, match=message) as error:
        open_idx(tmp_path)
    assert "\n" not in str(error.value)


def test_missing_idx_files(tmp_path):
    with pytest.raises(UserError, match="has no file train-images-idx3-ubyte, with or without .gz"):
        open_idx(tmp_path)


def test_fashion_mnist_subset(monkeypatch):
    """Digests of the decoded pixels and labels, computed from the original files by a different program."""
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
    monkeypatch.setitem(arrays.FASHION_SHA256, "test", "0" * 64)
    arrays.open_fashion.cache_clear()
    with pytest.raises(UserError, match="are not those of this package; reinstall it"):
        arrays.open_fashion("test")


PIXELS = np.random.default_rng(0).integers(0, 256, (20, 4, 5, 3), np.uint8)
NAMES = np.array(["cat", "dog"] * 10)


def open_npz(folder, split, **changed):
    np.savez(folder / "images.npz", **{"images": PIXELS, "labels": NAMES, **changed})
    return open_source(SourceConfig("npz", str(folder / "images.npz")), split, 8)


def test_numpy_files_with_and_without_test_images(tmp_path):
    source = open_npz(tmp_path, "test", test=np.arange(20) >= 15)
    assert source.class_names == ("cat", "dog")
    np.testing.assert_array_equal(source.labels, [1, 0, 1, 0, 1])
    np.testing.assert_array_equal(source[0]["image"], PIXELS[15])
    train, test = open_npz(tmp_path, "train"), open_npz(tmp_path, "test")
    assert len(train) == 16 and sorted(test.labels) == [0, 0, 1, 1]
    assert len({source[i]["name"] for source in (train, test) for i in range(len(source))}) == 20
    gray = PIXELS[..., :1].astype(np.float32) / 255
    image = open_npz(tmp_path, "train", images=gray, test=np.zeros(20, bool))[3]["image"]
    np.testing.assert_array_equal(image, np.repeat(gray[3], 3, -1))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(images=PIXELS[0]), r"images are uint8 \[4, 5, 3\]; expected"),
        (dict(images=PIXELS.astype(np.float32)), r"must be in \[0, 1\]"),
        (dict(images=np.full((20, 4, 5, 3), np.nan, np.float32)), r"must be in \[0, 1\]"),
        (dict(images=PIXELS.astype(np.int64)), "images are int64"),
        (dict(images=PIXELS[:0], labels=NAMES[:0]), "holds no pixels"),
        (dict(labels=NAMES[:3]), r"labels has shape \(3,\), but there are 20 images"),
        (dict(test=np.zeros(3, bool)), r"test has shape \(3,\)"),
    ],
)
def test_invalid_arrays_are_named(tmp_path, changed, message):
    with pytest.raises(UserError, match=message):
        open_npz(tmp_path, "train", **changed)


def test_other_numpy_files_are_rejected(tmp_path):
    path = tmp_path / "images.npz"
    np.savez(path, pixels=PIXELS)
    with pytest.raises(UserError, match="has no array 'images'"):
        open_source(SourceConfig("npz", str(path)), "train", 8)
    np.savez_compressed(path, images=PIXELS, labels=NAMES)
    complete = path.read_bytes()
    with path.open("wb") as file:
        np.save(file, PIXELS)
    for content in (complete[:200], complete[:60] + bytes(range(30)) + complete[90:], path.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read"):
            open_source(SourceConfig("npz", str(path)), "train", 8)


def test_noise_images_fill_the_range_and_depend_on_index():
    first, second, other, again = (
        NoiseImages(count, 8, seed)[number]["image"]
        for count, seed, number in ((3, 5, 1), (3, 5, 2), (3, 6, 2), (100, 5, 2))
    )
    for image in (first, second, other):
        assert image.shape == (8, 8, 3) and image.dtype == np.float32
        assert image.min() == 0 and image.max() == 1
    assert np.abs(first - second).max() > 0.1 and np.abs(other - second).max() > 0.1
    np.testing.assert_array_equal(again, second)


def test_noise_spectrum_follows_the_exponents():
    """Along the axes the power of frequency f is 1 / f^2a and 1 / f^2b of that of frequency 1."""

    class Fixed:
        """A generator with a = 1, b = 2, and normal samples."""

        def __init__(self, rng):
            self.standard_normal = rng.standard_normal

        def uniform(self, low, high, count):
            assert (low, high) == EXPONENTS and count == 2
            return np.array([1.0, 2.0])

    rng, power = np.random.default_rng(0), 0.0
    for _ in range(1000):
        channel = spectrum_noise(Fixed(rng), 32)[..., 0].astype(float)
        transformed = np.abs(np.fft.fft2(channel)) ** 2
        power += transformed / transformed[1:, 1:].sum()  # the rescaling to [0, 1] cancels
    # Along x, fy = 0: amplitude 1 / |fx|. 1,000 exponential samples: standard error 3.2%.
    for frequency in (2, 4, 8):
        np.testing.assert_allclose(power[0, frequency] / power[0, 1], frequency**-2.0, rtol=0.12)
        np.testing.assert_allclose(power[frequency, 0] / power[1, 0], frequency**-4.0, rtol=0.12)


def test_generated_images_are_read_from_their_file(tmp_path):
    np.save(tmp_path / "images.npy", PIXELS)
    sent = pickle.dumps(GeneratedImages(tmp_path / "images.npy", 3))
    assert len(sent) < 1000  # pickled for worker processes without the images
    source = pickle.loads(sent)
    record = source[2]
    assert (len(source), record["label"], record["name"]) == (3, 0, "generated/2")
    assert record["image"].dtype == np.float32
    np.testing.assert_allclose(record["image"], PIXELS[2] / 255, rtol=1e-6)
