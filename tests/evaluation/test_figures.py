"""The evaluator's figures where they are known beforehand."""

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from l2l_jax.data.digits import DigitsSource
from l2l_jax.data.transforms import Transform, TransformConfig
from l2l_jax.evaluation.figures import METRICS, Evaluator
from l2l_jax.evaluation.image_set import Images, ImageSet
from l2l_jax.evaluation.restoration import Restorer
from l2l_jax.models.mae import MAE
from l2l_jax.operators import centre_hole

HOLE = centre_hole(16, 8)


def digits(split):
    source = DigitsSource(split, 16)
    images = ImageSet(source, Transform(TransformConfig(), 16, training=False), (0.0, 1.0))
    return images.read(np.arange(len(source)))


@pytest.fixture(scope="module")
def evaluator():
    return Evaluator(HOLE, (0.0, 1.0), digits("train"))


@pytest.fixture(scope="module")
def tests():
    return digits("test")


def measure(evaluator, originals, restored):
    """The figures of a set that is observed in three blocks."""
    parts = np.array_split(np.arange(len(originals.labels)), 3)
    blocks = [(Images(*(field[part] for field in originals)), restored[part]) for part in parts]
    return evaluator.figures([evaluator.observe(*block) for block in blocks])


def test_perfect_restorations(evaluator, tests):
    figures = measure(evaluator, tests, tests.images)
    assert tuple(figures) == METRICS
    assert figures["mse"] == 0 and figures["psnr"] == pytest.approx(100)
    assert figures["fid"] == pytest.approx(0, abs=1e-6)
    train = digits("train")
    crops = [train.images[:, HOLE], tests.images[:, HOLE]]
    crops = [crop.reshape(len(crop), -1) for crop in crops]
    nearest = KNeighborsClassifier(1).fit(crops[0], train.labels).score(crops[1], tests.labels)
    assert figures["accuracy"] > nearest - 0.01 > 0.9
    assert 6 < figures["inception_score"] < 10  # at most the number of classes


def test_accuracy_reads_the_hole_alone(evaluator, tests):
    """Holes of one class in the rings of others: the classes of the holes are read."""
    shuffled = np.random.default_rng(0).permutation(len(tests.images))
    swapped = tests.images.copy()
    swapped[:, HOLE] = tests.images[shuffled][:, HOLE]
    assert measure(evaluator, tests, swapped)["accuracy"] < 0.25
    of_holes = tests._replace(labels=tests.labels[shuffled])
    assert measure(evaluator, of_holes, swapped)["accuracy"] > 0.93


def test_noise_is_far_and_perfect_is_near(evaluator, tests):
    noisy = tests.images.copy()
    noisy[:, HOLE] = np.random.default_rng(0).random(noisy[:, HOLE].shape)
    slightly = np.clip(tests.images + 0.02, 0, 1)
    far, near = measure(evaluator, tests, noisy), measure(evaluator, tests, slightly)
    assert far["fid"] > 20 * near["fid"] > 0
    assert far["accuracy"] < 0.4 < near["accuracy"]


def test_digits_are_scikit_learns():
    digits = load_digits()
    train, test = DigitsSource("train", 8), DigitsSource("test", 8)
    assert len(train) + len(test) == 1797
    record = test[3]
    index = int(record["name"].split("/")[1])
    assert record["label"] == digits.target[index]
    np.testing.assert_allclose(record["image"][..., 1], digits.images[index] / 16, atol=1e-6)
    # One in four of every class.
    share = np.bincount(test.labels) / np.bincount(digits.target)
    np.testing.assert_allclose(share, np.full(10, 0.25), atol=0.01)
    names = {source[i]["name"] for source in (train, test) for i in range(len(source))}
    assert len(names) == 1797  # no image in both


def test_restorer_gives_the_same_whatever_the_batches():
    model = MAE(
        image_size=16, patch_size=4, width=16, depth=1, num_heads=2,
        decoder_width=16, decoder_depth=1, decoder_num_heads=2,
    )  # fmt: skip
    params = model.init(jax.random.key(0))
    images = np.random.default_rng(0).random((10, 16, 16, 3)).astype(np.float32)
    whole = Restorer(model, HOLE, batch_size=10, seed=0)
    parts = Restorer(model, HOLE, batch_size=4, seed=0)
    restored = [parts(parts.place(params), images[i : i + 4], i) for i in (0, 4, 8)]
    np.testing.assert_allclose(whole(whole.place(params), images, 0), np.concatenate(restored), atol=1e-6)
    seen = Restorer(model, HOLE, batch_size=4, seed=0).seen(images)
    assert (seen[:, HOLE] == 0.5).all() and (seen[:, ~HOLE] == images[:, ~HOLE]).all()
