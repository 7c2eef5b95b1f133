"""Class names, ids and the published lists."""

import importlib.util
import pathlib
import re

import pytest

from l2l_jax.data.class_names import class_ids, imagenet_names
from l2l_jax.errors import UserError

(TFDS,) = map(pathlib.Path, importlib.util.find_spec("tensorflow_datasets").submodule_search_locations)
"""Folder of a package that is slow to import."""
IMAGENET = (TFDS / "datasets/imagenet2012/labels.txt").read_text().split()
PLACES = (TFDS / "image_classification/categories_places365.txt").read_text().split()


def ids(names, *wanted, side="forget"):
    return class_ids(names, wanted, f"config.data.{side}", side)


def test_published_splits_have_valid_classes():
    """The 200 ImageNet-R classes in the order of their ids, halved; forget indoor, retain natural scenes."""
    for split, names, count in (("imagenet_i2i", IMAGENET, 100), ("places365_i2i", PLACES, 50)):
        forget, retain = (ids(names, split, side=side) for side in ("forget", "retain"))
        assert len(forget) == len(retain) == count and not set(forget) & set(retain)
        if names is IMAGENET:
            assert sorted(forget + retain) == forget + retain
            assert (names[forget[0]], names[retain[-1]]) == ("n01443537", "n12267677")  # goldfish, acorn
    assert {"archive", "art_gallery", "attic"} <= {names[i] for i in forget}
    assert {"beach", "canyon"} <= {names[i] for i in retain}


def test_imagenet_classes_by_word():
    assert ids(IMAGENET, "goldfish", "Carassius auratus", "n01443537", 1) == [1]
    assert ids(IMAGENET, "tench, Great White Shark") == [0, 2]
    with pytest.raises(UserError, match="several classes are called 'crane': n02012849, n03126707"):
        ids(IMAGENET, "crane")
    with pytest.raises(UserError, match="names the class 'goldfsh', .* nearest: goldfish"):
        ids(IMAGENET, "goldfsh")
    with pytest.raises(UserError, match="'goldfish', which the source does not have"):
        ids(["n01440764", "n01484850"], "goldfish")


def test_names_ids_and_lists_of_names(tmp_path):
    names = ["cat", "dog", "cat, stuffed", "7"]
    assert ids(names, "dog,cat") == [1, 0]
    assert ids(names, "cat, stuffed") == [2]  # a class of that name goes before a list
    assert ids(names, 7, "7", 0) == [3, 0]  # and over an id
    (tmp_path / "classes.txt").write_text("# pets\ncat\n\n  dog \n")
    assert ids(names, f"@{tmp_path}/classes.txt") == [0, 1]
    with pytest.raises(UserError, match="class '4', which the source does not have; its classes: cat, dog"):
        ids(names, 4)
    with pytest.raises(UserError, match="the class 'dgo', which the source does not have; nearest: dog"):
        ids(names, "cat,dgo")


FLOATS = [f"{i}.0" for i in range(12)]


@pytest.mark.parametrize(
    ("names", "wanted", "expected"),
    [
        (sorted(FLOATS), "5.0", "5.0"),
        (["Maybe", "True"], "True", "True"),
        (["b", "a", "c"], "2", "c"),
        (["a", "1e0", "1"], "1", "1"),
        (["007", "7"], "007", "007"),
        (["Jürgen".encode().decode(), "x"], "Ju\u0308rgen", "Jürgen"),  # decomposed, as written by macOS
        (["x", "Jos\udce9"], "Jos\udce9", "Jos\udce9"),
    ],
)
def test_class_names_are_raw_text(names, wanted, expected):
    assert [names[i] for i in ids(names, wanted)] == [expected]


@pytest.mark.parametrize(
    ("names", "typed", "expected"),
    [
        ("3 [3]", "[3]", "[3]"),  # a class of that name goes before a list
        ("3 4", "[3]", "3"),
        ("5.0 07", "(5.0, 07)", "5.0 07"),
        ("a b (a,b)", "(a,b)", "(a,b)"),
        ("a,b a [c,d]", "('a,b', [c,d])", "a,b [c,d]"),
        ("[a] [b] a b", "[a],[b]", "[a] [b]"),
        ("a,b a", "'a,b'", "a,b"),
        ("(odd) odd", "(odd)", "(odd)"),
        ("[a b a", "[a, b", "[a b"),
        ("'tis b", "'tis,b", "'tis b"),
        ("it's me", "it's, me", "it's me"),
        ("a b", "(a,)", "a"),
        ("a b", "()", ""),
        ("{a} b", "{a},b", "{a} b"),
    ],
)
def test_lists_and_classes_that_look_like_lists(names, typed, expected):
    names = names.split()
    assert [names[i] for i in ids(names, typed)] == expected.split()


def test_names_that_look_like_numbers():
    with pytest.raises(UserError, match="with this number is '11.0', but '3.0' is the same number"):
        ids(sorted(FLOATS), "3")
    with pytest.raises(UserError, match=r"2 classes are called 'é', in .* forms: '\\xe9', 'e\\u0301'"):
        ids(["é", "e\u0301"], "é")


def test_every_imagenet_class_has_words():
    assert list(imagenet_names()) == IMAGENET
    assert all(words and all(words) for words in imagenet_names().values())
    assert all(re.fullmatch(r"n\d{8}", wnid) for wnid in imagenet_names())
