import numpy as np
import pytest

from l2l_jax.data.config import SourceConfig
from l2l_jax.data.npz import open_npz
from l2l_jax.errors import UserError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 4, 5, 3), np.uint8)
LABELS = np.array(["cat", "dog"] * 10)


def save(folder, **arrays):
    path = folder / "images.npz"
    np.savez(path, **{"images": IMAGES, "labels": LABELS, **arrays})
    return SourceConfig(source="npz", path=str(path))


def test_classes_are_named_by_their_labels(tmp_path):
    source = open_npz(save(tmp_path, test=np.arange(20) >= 15), "test")
    assert source.class_names == ("cat", "dog")
    np.testing.assert_array_equal(source.labels, [1, 0, 1, 0, 1])
    np.testing.assert_array_equal(source[0]["image"], IMAGES[15])


def test_a_share_of_each_class_is_held_out(tmp_path):
    config = save(tmp_path)
    train, test = open_npz(config, "train"), open_npz(config, "test")
    assert len(train) == 16 and sorted(test.labels) == [0, 0, 1, 1]
    names = {source[i]["name"] for source in (train, test) for i in range(len(source))}
    assert len(names) == 20


def test_gray_images_get_three_channels(tmp_path):
    config = save(tmp_path, images=IMAGES[..., :1].astype(np.float32) / 255, test=np.zeros(20, bool))
    image = open_npz(config, "train")[3]["image"]
    np.testing.assert_array_equal(image, np.repeat(IMAGES[3, ..., :1].astype(np.float32) / 255, 3, -1))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (dict(images=IMAGES[0]), r"images are uint8 \[4, 5, 3\]; expected"),
        (dict(images=IMAGES.astype(np.float32)), r"must be in \[0, 1\]"),
        (dict(images=IMAGES.astype(np.int64)), "images are int64"),
        (dict(labels=LABELS[:3]), r"labels has shape \(3,\), but there are 20 images"),
        (dict(test=np.zeros(3, bool)), r"test has shape \(3,\)"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path, arrays, message):
    with pytest.raises(UserError, match=message):
        open_npz(save(tmp_path, **arrays), "train")


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "images.npz"
    np.savez(path, pixels=IMAGES)
    with pytest.raises(UserError, match="has no array 'images'"):
        open_npz(SourceConfig(source="npz", path=str(path)), "train")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="cannot be read"):
        open_npz(SourceConfig(source="npz", path=str(path)), "train")
