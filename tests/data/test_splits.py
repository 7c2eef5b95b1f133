"""Choosing classes, and what is said of mistakes."""

import numpy as np
import pytest

from l2l_jax.data.sources import open_source
from l2l_jax.data.splits import split_by_class
from l2l_jax.errors import UserError


class Named:
    class_names = ("airfield", "alley", "amphitheater", "aquarium")
    labels = np.array([0, 1, 1, 2, 0])

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return {"image": None, "label": int(self.labels[index]), "name": f"image {index}"}


def names(source):
    return [source[i]["name"] for i in range(len(source))]


@pytest.mark.parametrize("forget", [("alley",), (1,)])
def test_by_name_or_id(forget):
    sets = split_by_class(Named(), ["airfield", "amphitheater"], forget)
    assert names(sets.forget) == ["image 1", "image 2"]
    assert names(sets.retain) == ["image 0", "image 3", "image 4"]
    np.testing.assert_array_equal(sets.retain.labels, [0, 2, 0])


def test_proxies_stand_in_for_the_retain_classes():
    """Of which no image is needed any more: there is none of an aquarium."""
    sets = split_by_class(Named(), ["aquarium"], ["alley"], proxy=["amphitheater"])
    assert names(sets.retain) == ["image 3"]
    assert names(sets.forget) == ["image 1", "image 2"]
    sets = split_by_class(Named(), ["airfield", "amphitheater"], ["alley"], proxy=[0])
    assert names(sets.retain) == ["image 0", "image 4"]


@pytest.mark.parametrize(
    ("proxy", "message"),
    [
        (["alley"], "both in config.data.proxy and in config.data.forget: alley"),
        (["aquarium"], "proxy set is empty: config.data.proxy selects no image"),
        (["zoo"], "config.data.proxy names the class 'zoo'"),
    ],
)
def test_mistaken_proxies_are_named(proxy, message):
    with pytest.raises(UserError, match=message):
        split_by_class(Named(), ["airfield"], ["alley"], proxy=proxy)


@pytest.mark.parametrize(
    ("retain", "forget", "message"),
    [
        (["airfeld"], ["alley"], "nearest: airfield"),
        (["zoo"], ["alley"], "its classes: airfield, alley"),
        ([7], ["alley"], "config.data.retain names the class 7"),
        (["alley"], ["alley", 0], "both in .*: alley"),
        (["airfield"], ["aquarium"], "forget set is empty"),
        (["airfield"], [], "forget set is empty"),
    ],
)
def test_mistakes_are_named(retain, forget, message):
    with pytest.raises(UserError, match=message):
        split_by_class(Named(), retain, forget)


def test_an_unknown_source_is_named():
    with pytest.raises(UserError, match="known sources: digits"):
        open_source("digit", "train", 16)
