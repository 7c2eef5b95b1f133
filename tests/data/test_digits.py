"""The digits of this package are scikit-learn's, and split as its function splits them."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from l2l_jax.data.digits import open_digits


def test_the_digits_are_those_of_scikit_learn():
    digits = load_digits()
    splits = train_test_split(
        np.arange(len(digits.target)), test_size=0.25, stratify=digits.target, random_state=0
    )
    for split, indices in zip(("train", "test"), splits, strict=True):
        source = open_digits(split, 8)
        assert len(source) == len(indices)
        for place, index in enumerate(sorted(indices)):
            record = source[place]
            assert record["name"] == f"digits/{index}" and record["label"] == digits.target[index]
            expected = np.repeat(digits.images[index][..., None] / 16, 3, axis=-1)
            np.testing.assert_allclose(record["image"], expected, atol=1e-7)
    train, test = open_digits("train", 8), open_digits("test", 8)
    share = np.bincount(test.labels) / np.bincount(digits.target)
    np.testing.assert_allclose(share, np.full(10, 0.25), atol=0.01)  # one in four of every class
    names = {source[i]["name"] for source in (train, test) for i in range(len(source))}
    assert len(train) + len(test) == len(names) == 1797  # no image in both
    with pytest.raises(ValueError, match="read-only"):
        source[0]["image"][0] = 0  # sources share their images
