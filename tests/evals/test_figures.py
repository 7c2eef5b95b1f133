"""The figures where they are known beforehand."""

import jax
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from l2l_jax.data.digits import DigitsSource
from l2l_jax.data.transforms import Transform, TransformConfig
from l2l_jax.evals.features.digits import DigitClassifier, MaskClassifier
from l2l_jax.evals.figures import (
    FIGURES,
    measure,
    measure_real,
    observe_classes,
    observe_images,
    observe_pairs,
)
from l2l_jax.evals.image_set import ImageSet
from l2l_jax.evals.inpaint import Restorer
from l2l_jax.evals.metrics import to_uint8
from l2l_jax.evals.tasks import parse_tasks
from l2l_jax.masks import center_mask
from l2l_jax.models.mae.model import MAE

MASK = center_mask(16, 8)
RANGE = (0.0, 1.0)


def digits(split):
    source = DigitsSource(split, 16)
    images = ImageSet(source, Transform(TransformConfig(), 16, training=False), RANGE)
    return images.read(np.arange(len(source)))


@pytest.fixture(scope="module")
def observe():
    train = digits("train")
    pixels = to_uint8(train.images, RANGE)
    networks = {"classifier": DigitClassifier(pixels, train.labels)}
    masks = MaskClassifier(pixels, train.labels, MASK)

    def observe(images, labels):
        pixels = to_uint8(images, RANGE)
        return observe_images(networks, pixels) | observe_classes(masks, pixels, labels)

    return observe


@pytest.fixture(scope="module")
def tests():
    return digits("test")


def figures(observe, originals, restored):
    """The figures of a set that is observed at once."""
    observed = observe(restored, originals.labels)
    masks = np.broadcast_to(MASK, (len(restored), 16, 16))
    observed |= observe_pairs(originals.images, restored, masks, RANGE)
    return measure(observed.get, observe(originals.images, originals.labels).get)


def test_perfect_restorations(observe, tests):
    result = figures(observe, tests, tests.images)
    found = result.figures
    assert set(found) == {
        "psnr", "ssim", "mse", "classifier_distance", "classifier_score", "classifier_score_std", "accuracy",
    }  # fmt: skip
    assert set(result.intervals) < set(FIGURES) and not result.missing
    assert found["mse"] == 0 and found["psnr"] == pytest.approx(100) and found["ssim"] == pytest.approx(1)
    assert found["classifier_distance"] == pytest.approx(0, abs=1e-6)
    train = digits("train")
    crops = [train.images[:, MASK], tests.images[:, MASK]]
    crops = [crop.reshape(len(crop), -1) for crop in crops]
    nearest = KNeighborsClassifier(1).fit(crops[0], train.labels).score(crops[1], tests.labels)
    assert found["accuracy"] > nearest - 0.01 > 0.9
    low, high = result.intervals["accuracy"]
    assert low < found["accuracy"] < high < 1.001 and high - low < 0.06  # of 450 images: ± 0.018
    assert 6 < found["classifier_score"] < 10  # at most the number of classes
    real = measure_real(observe(tests.images, tests.labels).get)
    assert real == {name: found[name] for name in real} and {"accuracy", "classifier_score"} <= set(real)


def test_accuracy_reads_the_mask_alone(observe, tests):
    """Masks of one class in the rings of others: the classes of the masks are read."""
    shuffled = np.random.default_rng(0).permutation(len(tests.images))
    swapped = tests.images.copy()
    swapped[:, MASK] = tests.images[shuffled][:, MASK]
    assert observe(swapped, tests.labels)["correct"].mean() < 0.25
    assert observe(swapped, tests.labels[shuffled])["correct"].mean() > 0.93


def test_noise_is_far_and_perfect_is_near(observe, tests):
    noisy = tests.images.copy()
    noisy[:, MASK] = np.random.default_rng(0).random(noisy[:, MASK].shape)
    slightly = np.clip(tests.images + 0.02, 0, 1)
    far, near = (figures(observe, tests, images).figures for images in (noisy, slightly))
    assert far["classifier_distance"] > 20 * near["classifier_distance"] > 0
    assert far["accuracy"] < 0.4 < near["accuracy"] and far["ssim"] < 0.7 < near["ssim"]


def test_networks_feed_the_figures_that_are_named_after_them():
    """Features and probabilities from a generator: each figure against its definition, by hand."""
    rng = np.random.default_rng(0)
    original, restored = rng.normal(size=(2, 40, 3)) + [[[0, 0, 0]], [[1, 2, 2]]]
    certain = np.eye(4)[np.arange(40) % 4]
    observed = {"inception/features": restored, "inception/probabilities": certain}
    observed |= {"resnet50/probabilities": np.full((40, 5), 0.2), "clip/features": restored}
    originals = {"inception/features": original, "clip/features": original}
    result = measure(observed.get, originals.get)
    assert set(result.figures) == {
        "fid", "kid", "kid_std", "inception_score", "inception_score_std", "scene_score", "scene_score_std",
        "clip_cosine",
    }  # fmt: skip
    assert 6 < result.figures["fid"] < 13  # the means are 3 apart, the covariances alike: 9 and chance
    assert result.intervals["fid"][0] < result.figures["fid"] < result.intervals["fid"][1]
    assert result.figures["inception_score"] == pytest.approx(4)
    assert result.figures["scene_score"] == pytest.approx(1)
    lengths = np.linalg.norm(original, axis=1) * np.linalg.norm(restored, axis=1)
    cosines = (original * restored).sum(axis=1) / lengths
    assert result.figures["clip_cosine"] == pytest.approx(cosines.mean())


def test_too_few_images_are_said():
    observed = {"inception/features": np.zeros((1, 4)), "inception/probabilities": np.ones((9, 1))}
    result = measure(observed.get, observed.get)
    assert not result.figures and result.missing == {
        "fid": "it needs two images",
        "kid": "it needs two images",
        "inception_score": "it needs 10 images, and there are 9",
    }


SMALL_MAE = MAE(
    image_size=16, patch_size=4, width=16, depth=1, num_heads=2,
    decoder_width=16, decoder_depth=1, decoder_num_heads=2,
)  # fmt: skip


class Noise(MAE):
    """Fills the mask with noise of the key and a parameter, so that keys can be seen."""

    def inpaint(self, params, images, mask, rng):
        noise = jax.random.uniform(rng, images.shape) * params["scale"]
        return jax.numpy.where(mask[None, ..., None], noise, images)


@pytest.mark.parametrize("name", ["centre_8", "random_75"])
def test_restorations_do_not_depend_on_the_batches(name):
    (task,) = parse_tasks([name])
    params = jax.jit(SMALL_MAE.init)(jax.random.key(0))
    images = np.random.default_rng(0).random((10, 16, 16, 3)).astype(np.float32)
    whole = Restorer(SMALL_MAE, task, batch_size=16, seed=0)
    parts = Restorer(SMALL_MAE, task, batch_size=4, seed=0)
    places = np.arange(10)
    expected = whole(whole.place(params), images, "retain", places)
    restored = [
        parts(parts.place(params), images[rows], "retain", rows)
        for rows in ([0, 1, 2], [3], [4, 5, 6, 7], [8, 9])
    ]
    np.testing.assert_allclose(expected, np.concatenate(restored), atol=1e-6)
    masks = whole.masks("retain", places)
    assert masks.shape == (10, 16, 16)
    np.testing.assert_array_equal(expected[~masks], images[~masks])
    assert (np.abs(expected - images)[masks] > 0).mean() > 0.99
    seen = whole.seen(images, "retain", places)
    assert (seen[masks] == 0.5).all() and (seen[~masks] == images[~masks]).all()
    same_masks = (whole.masks("forget", places) == masks).all()
    assert same_masks == (name == "centre_8")  # random ones differ between sets


def test_hidden_patches_do_not_influence_the_restoration():
    visible = np.array([[0, 5, 6, 15]], np.int32)
    images = np.random.default_rng(0).random((1, 16, 16, 3)).astype(np.float32)
    params = jax.jit(SMALL_MAE.init)(jax.random.key(0))
    inpaint = jax.jit(lambda images: SMALL_MAE.inpaint_from_patches(params, images, visible))
    restored = np.asarray(inpaint(images))
    other = images.copy()
    other[0, 4:8, 12:] = 0  # patch 7
    np.testing.assert_array_equal(restored, inpaint(other))
    np.testing.assert_array_equal(restored[0, 4:8, 4:12], images[0, 4:8, 4:12])  # patches 5 and 6


def test_what_is_drawn_belongs_to_the_image_and_its_set():
    model, (task,) = Noise(image_size=16, patch_size=4), parse_tasks(["centre_8"])
    params = {"scale": np.float32(1)}
    images = np.zeros((3, 16, 16, 3), np.float32)

    def noise(of, places, seed=0):
        restorer = Restorer(model, task, batch_size=4, seed=seed)
        return restorer(restorer.place(params), images[: len(places)], of, np.array(places))[:, MASK]

    first = noise("retain", [0, 1, 2])
    np.testing.assert_array_equal(noise("retain", [2, 0]), first[[2, 0]])
    for other in (noise("forget", [0, 1, 2]), noise("retain", [1, 2, 3]), noise("retain", [0, 1, 2], seed=1)):
        assert (other != first).all(axis=(1, 2)).all()
    assert (first[0] != first[1]).mean() > 0.99
