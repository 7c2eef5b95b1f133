"""Test images in blocks, and handling of images that cannot be decoded."""

from types import SimpleNamespace

import numpy as np

from l2l_jax.data.transforms import TransformConfig
from l2l_jax.evals.image_set import SHOWN_CLASSES, ImageSet
from tests.data.pictures import Files


def image_set(count, broken=(), labels=None):
    source = Files(count, broken)
    if labels is not None:
        source.labels = np.asarray(labels)
    model = SimpleNamespace(image_size=4, value_range=(0.0, 255.0))
    setup = SimpleNamespace(model=model, data=SimpleNamespace(max_bad_fraction=0.5))
    return ImageSet(setup, source, "retain test", TransformConfig())


def test_blocks_have_every_good_image_in_order():
    images = image_set(40, broken=[1, 33])
    blocks = list(images.blocks(32))
    assert [(block.number, block.size) for block in blocks] == [(0, 32), (1, 8)]
    good = np.setdiff1d(np.arange(40), [1, 33])
    np.testing.assert_array_equal(np.concatenate([block.good.indices for block in blocks]), good)
    for block in blocks:
        np.testing.assert_allclose(block.good.images[:, 0, 0, 0], 10 + 2 * block.good.indices, atol=1)
    assert set(images.skipped) == {"image 1", "image 33"} and "runcated" in images.skipped["image 1"]
    assert list(blocks[0].skipped) == ["image 1"]


def test_subset_of_the_blocks():
    all_blocks = list(image_set(10).blocks(2))
    shares = [list(image_set(10).blocks(2, slice(process, None, 3))) for process in range(3)]
    assert [[block.number for block in share] for share in shares] == [[0, 3], [1, 4], [2]]
    assert shares[1][1].digest == all_blocks[4].digest != all_blocks[3].digest
    assert list(image_set(2).blocks(2, slice(1, None, 2))) == []


def test_digest_depends_on_images_labels_and_order():
    digests = {
        next(image_set(count, broken, labels).blocks(4)).digest
        for count, broken, labels in [(4, [], None), (4, [1], None), (4, [], [0, 0, 0, 1]), (3, [], None)]
    }
    assert len(digests) == 4


def test_image_grid_has_the_first_good_images_of_each_class():
    images = image_set(9, broken=[0, 4], labels=[0, 1, 2] * 3)
    selected = images.first_of_each_class(2)
    np.testing.assert_array_equal(selected.indices, [3, 6, 1, 7, 2, 5])  # 0 and 4 are skipped
    np.testing.assert_array_equal(selected.labels, [0, 0, 1, 1, 2, 2])
    many = image_set(40, labels=range(40)).first_of_each_class(1)
    assert len(many.labels) == SHOWN_CLASSES and (many.labels[0], many.labels[-1]) == (0, 39)
