"""The order of a set: permutations by epoch."""

import numpy as np

from l2l_jax.data.order import EpochOrder


def test_an_epoch_is_a_permutation_and_every_epoch_another():
    epochs, indices = EpochOrder(11, seed=0)(np.arange(55))
    np.testing.assert_array_equal(epochs, np.repeat(np.arange(5), 11))
    rows = indices.reshape(5, 11)
    np.testing.assert_array_equal(np.sort(rows, axis=1), np.tile(np.arange(11), (5, 1)))
    assert len({tuple(row) for row in rows}) == 5


def test_every_place_can_be_asked_for_alone():
    order = EpochOrder(7, seed=3)
    whole = order(np.arange(70))
    scattered = np.random.default_rng(0).permutation(70)
    for together, alone in zip(whole, EpochOrder(7, seed=3)(scattered), strict=True):
        np.testing.assert_array_equal(together[scattered], alone)


def test_the_order_is_the_same_in_every_version():
    """Raw words of Philox, whose stream NumPy guarantees, sorted in Python."""
    words = np.random.Philox(np.random.SeedSequence((5, 2))).random_raw(6)
    by_hand = sorted(range(6), key=lambda i: words[i])
    np.testing.assert_array_equal(EpochOrder(6, seed=5)(np.arange(12, 18))[1], by_hand)


def test_all_first_images_are_about_equally_frequent():
    first = EpochOrder(4, seed=1)(np.arange(0, 4 * 4000, 4))[1]
    share = np.bincount(first, minlength=4) / 4000
    np.testing.assert_allclose(share, 0.25, atol=5 * np.sqrt(0.25 * 0.75 / 4000))
