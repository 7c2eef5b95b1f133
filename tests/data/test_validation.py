"""Validation images: a share of the training images that nothing is trained on."""

import numpy as np
import pytest

from l2l_jax.data.config import DataConfig, SourceConfig
from l2l_jax.data.digits import open_digits
from l2l_jax.data.sources import open_source
from l2l_jax.data.splits import training_sets, validation_sets
from l2l_jax.errors import UserError


def names(source):
    return {source[i]["name"] for i in range(len(source))}


def test_train_validation_and_test_share_no_image_and_lose_none():
    config = SourceConfig("digits", validation_fraction=0.15)
    parts = {split: open_source(config, split, 8) for split in ("train", "validation", "test")}
    found = {split: names(source) for split, source in parts.items()}
    assert not found["train"] & found["validation"] and not found["validation"] & found["test"]
    assert found["train"] | found["validation"] == names(open_digits("train", 8))
    assert found["test"] == names(open_digits("test", 8))
    before = np.bincount(open_digits("train", 8).labels)
    np.testing.assert_array_equal(np.bincount(parts["validation"].labels), np.rint(0.15 * before))


def test_validation_images_of_files_do_not_depend_on_new_ones(tmp_path):
    for number in range(20):
        path = tmp_path / "cat" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    config = SourceConfig("folder", str(tmp_path), test_fraction=0.25, validation_fraction=0.2)
    before = {split: names(open_source(config, split, 8)) for split in ("train", "validation", "test")}
    assert [len(found) for found in before.values()] == [12, 3, 5]
    (tmp_path / "cat" / "new.jpg").write_bytes(b"x")
    after = names(open_source(config, "train", 8))
    assert len(before["train"] & after) >= 10  # one image more moves two of the borders by one at most


def test_retain_and_forget_classes_of_the_validation_images():
    data = DataConfig(source="digits", forget=("7",), retain=("0", "1"), validation_fraction=0.1)
    source = open_source(data, "validation", 8)
    sets = validation_sets(data, source)
    assert set(sets.forget.labels) == {7} and set(sets.retain.labels) == {0, 1}
    training = training_sets(data, open_source(data, "train", 8), 8)
    assert not names(training.retain) & names(sets.retain)


def test_asked_for_where_there_are_none():
    with pytest.raises(UserError, match="validation_fraction is 0, so that there are no validation images"):
        open_source(SourceConfig("digits"), "validation", 8)
