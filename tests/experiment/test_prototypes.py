"""Class prototypes, and interpolations between them."""

import numpy as np
import pytest

from l2l_jax.config import parse_config
from l2l_jax.config_files import override, read_config
from l2l_jax.data.arrays import PrototypeImages, open_digits
from l2l_jax.errors import UserError
from l2l_jax.experiment.phase import training_sets
from l2l_jax.experiment.prototypes import PER_CLASS


def config(path, **data):
    given = {"retain_images": "generated", "prototypes": str(path), **data}
    fields = {f"data.{name}": value for name, value in given.items()}
    return parse_config(override(read_config("digits_mae"), fields))


def stored(path):
    with np.load(path) as file:
        return file["images"], file["labels"]


def test_prototypes_are_cluster_means_of_a_class(tmp_path):
    path = tmp_path / "of" / "prototypes.npz"
    train = open_digits("train", 16)
    sets = training_sets(config(path), train)
    images, labels = stored(path)
    assert images.dtype == np.uint8 and images.shape == (10 * PER_CLASS, 16, 16, 3)
    np.testing.assert_array_equal(np.unique(labels, return_counts=True)[1], PER_CLASS)
    for digit in "05":  # every prototype is the mean of its nearest images
        own = np.stack([train[int(i)]["image"] for i in np.flatnonzero(train.labels == int(digit))])
        own, means = own.reshape(len(own), -1), images[labels == digit].reshape(PER_CLASS, -1) / 255
        nearest = np.square(own[:, None] - means[None]).sum(-1).argmin(1)
        again = [own[nearest == number].mean(0) for number in range(PER_CLASS)]
        assert np.abs(means - again).max() < 0.03
    assert sets.retain.class_names == list("01234") and len(sets.retain) == len(sets.forget)


def test_stored_prototypes_are_reused(tmp_path):
    path = tmp_path / "prototypes.npz"
    training_sets(config(path, train_per_class=3), open_digits("train", 16))
    before = path.stat().st_mtime_ns
    images, labels = stored(path)
    assert len(labels) == 30  # with three images, the three prototypes are the images
    sets = training_sets(config(path), open_digits("train", 16))
    assert path.stat().st_mtime_ns == before
    ones = images[labels == "1"].reshape(3, -1) / 255
    generated = [sets.retain[i] for i in range(len(sets.retain)) if sets.retain.labels[i] == 1]
    for record in generated[:20]:
        mixture, *_ = np.linalg.lstsq(ones.T, record["image"].ravel(), rcond=None)
        np.testing.assert_allclose(mixture @ ones, record["image"].ravel(), atol=1e-5)
        np.testing.assert_allclose(mixture.sum(), 1, atol=1e-4)
        assert mixture.min() > -1e-4 and (mixture > 1e-4).sum() <= 2


@pytest.mark.parametrize(("content", "message"), [(None, "cannot be read"), (["0"], "no prototype of .*'1'")])
def test_invalid_prototype_files(content, message, tmp_path):
    path = tmp_path / "prototypes.npz"
    if content is None:
        path.write_text("no archive")
    else:
        np.savez(path, images=np.zeros((1, 4, 4, 3), np.uint8), labels=np.array(content))
    with pytest.raises(UserError, match=message):
        PrototypeImages(str(path), ["0", "1"], 4, 0)


def test_prototypes_require_generated_images():
    with pytest.raises(UserError, match="set retain_images=generated"):
        config("prototypes.npz", retain_images="real")
