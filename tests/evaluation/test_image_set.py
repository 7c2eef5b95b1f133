"""Test images block by block, and what happens to those that cannot be decoded."""

import numpy as np
import pytest

from l2l_jax.data.transforms import Transform, TransformConfig
from l2l_jax.errors import UserError
from l2l_jax.evaluation.comparison_report import table as comparison_table
from l2l_jax.evaluation.figures import Evaluator
from l2l_jax.evaluation.image_set import SHOWN_CLASSES, Images, ImageSet
from l2l_jax.evaluation.report import table
from l2l_jax.operators import centre_hole
from tests.data.pictures import Files


def image_set(count, broken=(), labels=None, max_fraction=0.5):
    source = Files(count, broken)
    if labels is not None:
        source.labels = np.asarray(labels)
    transform = Transform(TransformConfig(), 4, training=False)
    return ImageSet(source, transform, (0.0, 255.0), max_bad_fraction=max_fraction, name="retain test")


def test_blocks_hold_every_good_image_in_its_place():
    images = image_set(10, broken=[1, 8])
    blocks = list(images.blocks(4))
    assert [block.first for block in blocks] == [0, 4, 8]
    assert [list(block.places) for block in blocks] == [[0, 2, 3], [0, 1, 2, 3], [1]]
    for block in blocks:
        np.testing.assert_allclose(block.good.images[:, 0, 0, 0], 10 + 2 * block.good.indices, atol=1)
        np.testing.assert_array_equal(block.padded[block.places], block.good.images)
    assert [len(block.padded) for block in blocks] == [4, 4, 2] and not blocks[0].padded[1].any()
    assert set(images.skipped) == {"image 1", "image 8"} and "runcated" in images.skipped["image 1"]


def test_too_many_bad_test_images_are_an_error():
    with pytest.raises(UserError, match="3 of 10 images of the retain test set cannot be read"):
        list(image_set(10, broken=[1, 2, 3], max_fraction=0.2).blocks(10))


def test_the_picture_shows_the_first_good_images_of_each_class():
    images = image_set(9, broken=[0, 4], labels=[0, 1, 2] * 3)
    shown = images.first_of_each_class(2)
    np.testing.assert_array_equal(shown.indices, [3, 6, 1, 7, 2, 5])  # 0 and 4 are passed over
    np.testing.assert_array_equal(shown.labels, [0, 0, 1, 1, 2, 2])
    many = image_set(40, labels=range(40)).first_of_each_class(1)
    assert len(many.labels) == SHOWN_CLASSES and (many.labels[0], many.labels[-1]) == (0, 39)


def test_without_a_classifier_there_are_psnr_and_mse_everywhere():
    hole = centre_hole(8, 4)
    originals = Images(np.arange(3), np.zeros((3, 8, 8, 3), np.float32), np.zeros(3, int))
    evaluator = Evaluator(hole, (0.0, 1.0), None)
    figures = evaluator.figures([evaluator.observe(originals, originals.images + np.float32(0.1))])
    assert figures == {"psnr": pytest.approx(20, abs=1e-4), "mse": pytest.approx(0.01)}  # 10 log10(1 / 0.01)
    rows = {"retain": figures, "forget": figures}
    shown = table({"original": rows, "unlearned": rows})
    assert "20.00" in shown and "0.0100" in shown and "FID" not in shown
    assert "forget hole MSE" in comparison_table({"original": rows}) and "FID" not in comparison_table(
        {"original": rows}
    )


def test_large_images_are_shrunk_for_the_classifiers():
    """96 pixels a side: means of 3×3; noise of one pixel hardly matters, the hole's brightness does."""
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 2
    images = rng.random((80, 96, 96, 3)).astype(np.float32) * 0.5
    hole = centre_hole(96, 48)
    images[labels == 1] += 0.5 * hole[..., None]
    evaluator = Evaluator(hole, (0.0, 1.0), Images(np.arange(80), images, labels))
    other = rng.random((20, 96, 96, 3)).astype(np.float32) * 0.5
    other[10:] += 0.5 * hole[..., None]
    of = Images(np.arange(20), other, np.repeat([0, 1], 10))
    observed = evaluator.observe(of, other)
    assert observed["right"].all() and observed["mse"].max() == 0
    assert not evaluator.observe(of, other[::-1])["right"].any()
