"""What classes may be called, and the published lists."""

import importlib.resources
import re

import pytest
import tensorflow_datasets

from l2l_jax.data.class_names import class_ids
from l2l_jax.errors import UserError

TFDS = importlib.resources.files(tensorflow_datasets)
IMAGENET = (TFDS / "datasets/imagenet2012/labels.txt").read_text().split()
PLACES = (TFDS / "image_classification/categories_places365.txt").read_text().split()


def ids(names, *wanted, side="forget"):
    return class_ids(names, wanted, f"config.data.{side}", side)


@pytest.mark.parametrize(("split", "names", "count"), [
    ("imagenet_i2i", IMAGENET, 100),
    ("places365_i2i", PLACES, 50),
])  # fmt: skip
def test_published_splits_are_classes_of_the_data_sets(split, names, count):
    forget, retain = ids(names, split), ids(names, split, side="retain")
    assert len(forget) == len(retain) == count and not set(forget) & set(retain)


def test_published_split_of_imagenet():
    """The 200 ImageNet-R classes in the order of their ids, halved; from goldfish to acorn."""
    forget, retain = ids(IMAGENET, "imagenet_i2i"), ids(IMAGENET, "imagenet_i2i", side="retain")
    assert sorted(forget + retain) == forget + retain
    assert IMAGENET[forget[0]] == "n01443537" and IMAGENET[retain[-1]] == "n12267677"


def test_published_split_of_places():
    """Indoor scenes to forget, natural ones to retain."""
    assert {"archive", "art_gallery", "attic"} <= {PLACES[i] for i in ids(PLACES, "places365_i2i")}
    assert {"beach", "canyon"} <= {PLACES[i] for i in ids(PLACES, "places365_i2i", side="retain")}


def test_imagenet_classes_by_word():
    assert ids(IMAGENET, "goldfish", "Carassius auratus", "n01443537", 1) == [1]
    assert ids(IMAGENET, "tench, Great White Shark") == [0, 2]
    with pytest.raises(UserError, match="several classes are called 'crane': n02012849, n03126707"):
        ids(IMAGENET, "crane")
    with pytest.raises(UserError, match="names the class 'goldfsh', .* nearest: goldfish"):
        ids(IMAGENET, "goldfsh")
    with pytest.raises(UserError, match="'goldfish', which the source lacks"):
        ids(["n01440764", "n01484850"], "goldfish")


def test_names_ids_and_lists_of_names(tmp_path):
    names = ["cat", "dog", "cat, stuffed", "7"]
    assert ids(names, "dog,cat") == [1, 0]
    assert ids(names, "cat, stuffed") == [2]  # a class of that name goes before a list
    assert ids(names, 7, "7", 0) == [3, 0]  # and before an id
    (tmp_path / "classes.txt").write_text("# pets\ncat\n\n  dog \n")
    assert ids(names, f"@{tmp_path}/classes.txt") == [0, 1]
    for wanted, message in (
        (f"@{tmp_path}/none.txt", "config.data.forget: the list of classes .*none.txt cannot be read"),
        (4, "names the class 4, which the source lacks; its classes: cat, dog"),
        (-1, "names the class -1"),
        ("cat,dgo", "names the class 'dgo', which the source lacks; nearest: dog"),
    ):
        with pytest.raises(UserError, match=message):
            ids(names, wanted)


def test_every_imagenet_class_has_words():
    from l2l_jax.data.class_names import imagenet_names

    assert list(imagenet_names()) == IMAGENET
    assert all(words and all(words) for words in imagenet_names().values())
    assert all(re.fullmatch(r"n\d{8}", wnid) for wnid in imagenet_names())
