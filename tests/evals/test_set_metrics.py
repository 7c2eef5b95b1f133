"""Metrics of sets with known values."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from l2l_jax.data.arrays import open_digits
from l2l_jax.data.transforms import TransformConfig
from l2l_jax.evals.features.classifier import MaskedClassifier, SmallClassifier
from l2l_jax.evals.image_set import ImageSet
from l2l_jax.evals.metrics import (
    METRICS,
    balanced_accuracy,
    measure,
    measure_originals,
    observe_pairs,
    to_uint8,
)
from l2l_jax.evals.tables import reasons
from l2l_jax.masks import center_mask

MASK = center_mask(16, 8)
RANGE = (0.0, 1.0)


def digits(split):
    source = open_digits(split, 16)
    model = SimpleNamespace(image_size=16, value_range=RANGE)
    setup = SimpleNamespace(model=model, data=SimpleNamespace(max_bad_fraction=0.0))
    return ImageSet(setup, source, split, TransformConfig()).read(np.arange(len(source)))


@pytest.fixture(scope="module")
def observe():
    train = digits("train")
    pixels = to_uint8(train.images, RANGE)
    networks = {
        "classifier": SmallClassifier(pixels, train.labels),
        "masked": MaskedClassifier(pixels, train.labels, MASK),
    }

    def observe(images, labels):
        found = {name: network(to_uint8(images, RANGE)) for name, network in networks.items()}
        return {"labels": labels} | {f"{n}/{key}": x for n, o in found.items() for key, x in o.items()}

    return observe


@pytest.fixture(scope="module")
def tests():
    return digits("test")


def test_classifier_of_masked_regions_matches_scikit_learn(tests):
    train, test = digits("train"), to_uint8(tests.images, RANGE)
    pixels = to_uint8(train.images, RANGE)
    read = MaskedClassifier(pixels, train.labels, MASK)(test)["classes"]
    svc = SVC(C=10.0).fit(pixels[:, MASK].reshape(len(pixels), -1) / 255, train.labels)
    np.testing.assert_array_equal(read, svc.predict(test[:, MASK].reshape(len(test), -1) / 255))
    assert (read == tests.labels).mean() > 0.6


def measured(observe, originals, inpainted):
    observed = observe(inpainted, originals.labels)
    masks = np.broadcast_to(MASK, (len(inpainted), 16, 16))
    observed |= observe_pairs(originals.images, inpainted, masks, RANGE)
    return measure(observed.get, observe(originals.images, originals.labels).get, "abcdefghij")


def test_perfect_reconstructions(observe, tests):
    result = measured(observe, tests, tests.images)
    metrics = result.metrics
    extra = {"classifier_score_std", "balanced_accuracy"}
    assert set(metrics) - extra == {
        "psnr",
        "ssim",
        "mse",
        "classifier_distance",
        "classifier_score",
        "accuracy",
    }
    assert set(result.intervals) < set(METRICS) and not result.missing and not result.unreliable
    assert metrics["mse"] == 0 and (metrics["psnr"], metrics["ssim"]) == pytest.approx((100, 1))
    assert metrics["classifier_distance"] == pytest.approx(0, abs=1e-6)
    train = digits("train")
    crops = [train.images[:, MASK], tests.images[:, MASK]]
    crops = [crop.reshape(len(crop), -1) for crop in crops]
    nearest = KNeighborsClassifier(1).fit(crops[0], train.labels).score(crops[1], tests.labels)
    assert metrics["accuracy"] > nearest - 0.01 > 0.9
    low, high = result.intervals["accuracy"]
    assert low < metrics["accuracy"] < high < 1.001 and high - low < 0.06  # of 450 images: ± 0.018
    assert 6 < metrics["classifier_score"] < 10  # at most the number of classes
    real = measure_originals(observe(tests.images, tests.labels).get, tests.labels)
    assert real == {name: metrics[name] for name in real} and {"accuracy", "classifier_score"} <= set(real)


def test_metrics_of_classes_average_to_those_of_the_set(observe, tests):
    slightly = np.clip(tests.images + 0.1 * (tests.labels[:, None, None, None] == 3), 0, 1)
    result = measured(observe, tests, slightly)
    rows = result.classes
    assert list(rows) == list("abcdefghij")
    assert sum(row["count"] for row in rows.values()) == len(tests.labels)
    for name in ("mse", "accuracy"):
        total = sum(row["count"] * row[name] for row in rows.values())
        assert total / len(tests.labels) == pytest.approx(result.metrics[name])
    assert rows["d"]["mse"] > 0 == rows["c"]["mse"]
    mean = np.mean([row["accuracy"] for row in rows.values()])
    assert result.metrics["balanced_accuracy"] == pytest.approx(mean)
    assert balanced_accuracy(np.array([1, 1, 0, 1]), np.array([7, 7, 7, 2])) == pytest.approx((2 / 3 + 1) / 2)


def test_accuracy_uses_only_the_masked_region(observe, tests):
    """Masked regions of one class with visible pixels of others: the masked region determines the class."""
    shuffled = np.random.default_rng(0).permutation(len(tests.images))
    swapped = tests.images.copy()
    swapped[:, MASK] = tests.images[shuffled][:, MASK]
    classes = observe(swapped, tests.labels)["masked/classes"]
    assert (classes == tests.labels).mean() < 0.25
    assert (classes == tests.labels[shuffled]).mean() > 0.93


def test_noise_is_worse_than_perfect_reconstructions(observe, tests):
    noisy = tests.images.copy()
    noisy[:, MASK] = np.random.default_rng(0).random(noisy[:, MASK].shape)
    slightly = np.clip(tests.images + 0.02, 0, 1)
    far, near = (measured(observe, tests, images).metrics for images in (noisy, slightly))
    assert far["classifier_distance"] > 20 * near["classifier_distance"] > 0
    assert far["accuracy"] < 0.4 < near["accuracy"] and far["ssim"] < 0.7 < near["ssim"]


def test_metrics_of_feature_networks():
    """Random features and probabilities: each metric compared with its definition."""
    rng = np.random.default_rng(0)
    original, inpainted = rng.normal(size=(2, 40, 3)) + [[[0, 0, 0]], [[1, 2, 2]]]
    observed = {"inception/features": inpainted, "inception/probabilities": np.eye(4)[np.arange(40) % 4]}
    observed |= {"resnet50/probabilities": np.full((40, 5), 0.2), "clip/features": inpainted}
    originals = {"inception/features": original, "clip/features": original}
    result = measure(observed.get, originals.get)
    assert set(result.metrics) - {"inception_score_std", "scene_score_std"} == {
        "fid",
        "kid",
        "inception_score",
        "scene_score",
        "clip_cosine",
    }
    assert 6 < result.metrics["fid"] < 13  # means at distance 3, equal covariances: 9 plus noise
    assert result.intervals["fid"][0] < result.metrics["fid"] < result.intervals["fid"][1]
    assert result.metrics["inception_score"] == pytest.approx(4)
    assert result.metrics["scene_score"] == pytest.approx(1)
    lengths = np.linalg.norm(original, axis=1) * np.linalg.norm(inpainted, axis=1)
    cosines = (original * inpainted).sum(axis=1) / lengths
    assert result.metrics["clip_cosine"] == pytest.approx(cosines.mean())


@pytest.mark.parametrize("images", [1, 12, 1001])
def test_too_few_images_are_reported_with_the_number_needed(images):
    rng = np.random.default_rng(0)
    read = {
        "inception/features": rng.normal(size=(images, 20)),
        "inception/probabilities": np.ones((9, 1)),
    }.get
    result = measure(read, read)
    assert result.missing["inception_score"] == "it needs 10 images, and there are 9"
    if images == 1:
        assert result.missing["fid"] == result.missing["kid"] == "it needs two images"
    elif images == 12:
        assert "kid_std" not in result.metrics and "kid" in result.metrics
        assert reasons({"not_available": result.missing, "unreliable": result.unreliable}) == [
            "IS: not available: it needs 10 images, and there are 9",
            "FID: unreliable: 12 images are too few: it needs more than its 20 features; 10,000 are usual",
            "KID: unreliable: 12 images are too few: its spread over subsets needs more than 1,000",
        ]
    else:
        assert not result.unreliable and "kid_std" in result.metrics
