"""Selection of training, validation and test images, and error messages."""

import numpy as np
import pytest

from l2l_jax.data.config import DataConfig, ProxyConfig, SourceConfig
from l2l_jax.data.records import Source
from l2l_jax.data.sources import open_source
from l2l_jax.data.splits import (
    describe,
    evaluation_sets,
    general_set,
    retained_names,
    training_sets,
    validation_sets,
)
from l2l_jax.errors import UserError


class Named(Source):
    class_names = ("airfield", "alley", "amphitheater", "aquarium")
    labels = np.array([0, 1, 1, 2, 0])

    def __getitem__(self, index):
        raise AssertionError("choosing images reads none")


class Many(Named):
    labels = np.tile(np.arange(4), 25)


def data(forget, retain=("rest",), **fields):
    return DataConfig(source="named", forget=tuple(forget), retain=tuple(retain), **fields)


def chosen(source):
    return list(source.indices)


def train(config, source=None):
    return training_sets(config, source or Named(), image_size=8)


def test_classes_by_name_or_id():
    for forget in ("alley", 1, "1"):
        sets = train(data([forget], ["airfield", "amphitheater"]))
        assert chosen(sets.forget) == [1, 2] and chosen(sets.retain) == [0, 3, 4]
        np.testing.assert_array_equal(sets.retain.labels, [0, 2, 0])


def test_rest_is_all_unnamed_classes_or_a_class_name():
    for rest in ("rest", "(airfield, rest)", "airfield,rest"):
        assert chosen(train(data(["alley"], [rest])).retain) == [0, 3, 4]
    sets = train(data(["alley"], ["airfield"], proxy=("rest",)))
    assert chosen(sets.retain) == [3]
    assert retained_names(data(["alley"]), Named.class_names) == ("airfield", "amphitheater", "aquarium")
    named = Many()
    named.class_names = ("airfield", "rest", "zoo", "bus")
    assert set(train(data(["rest"]), named).forget.labels) == {1}
    assert set(train(data(["zoo"]), named).retain.labels) == {0, 1, 3}


def test_description_of_sets_by_class():
    assert describe(train(data(["alley"])).retain) == "3 images: airfield 2, amphitheater 1"
    many = Many()
    many.class_names, many.labels = [f"a\n{i}" for i in range(12)], np.arange(12)
    assert describe(many, "proxies").startswith("12 proxies: a\\n0 1, a\\n1 1, ")
    assert describe(many).endswith("a\\n9 1, … (12 classes)")


def test_starting_images_of_generation():
    """As many noise images as forget images, or proxies; evaluation uses real images."""
    sets = train(data(["alley"], retain_images="generated"))
    assert len(sets.retain) == 2 and sets.retain[1]["image"].shape == (8, 8, 3)
    assert len(train(data(["alley"], retain_images="generated", generated_count=7)).retain) == 7
    few = data(["alley"], ["aquarium"], proxy=("airfield",), retain_images="generated", generated_count=1)
    assert list(train(few).retain.labels) == [0]
    assert list(evaluation_sets(few, Many()).retain.labels) == [3] * 25
    many = data(["alley"], ["aquarium"], proxy=("airfield",), retain_images="generated")
    assert list(train(many).retain.labels) == [0, 0]
    with pytest.raises(UserError, match="generated_count is 3, but there are 2 proxies"):
        train(data(["alley"], proxy=("airfield",), retain_images="generated", generated_count=3))
    with pytest.raises(ValueError, match="retain_ratio 0.5 .* of which none is used"):
        data(["alley"], retain_images="generated", retain_ratio=0.5)


def test_proxies_replace_the_retain_classes():
    """Images of the retain class are not needed: the source has none of an aquarium."""
    sets = train(data(["alley"], ["aquarium"], proxy=("amphitheater",)))
    assert chosen(sets.retain) == [3] and chosen(sets.forget) == [1, 2]
    sets = train(data(["alley"], ["airfield", "amphitheater"], proxy=(0,)))
    assert chosen(sets.retain) == [0, 4]


def test_number_of_images_per_class():
    """The selection in a class does not depend on other classes, and is a subset of larger selections."""
    few = train(data(["alley"], train_per_class=5), Many())
    more = train(data(["aquarium", "alley"], ["airfield"], train_per_class=9), Many())
    np.testing.assert_array_equal(np.bincount(few.retain.labels), [5, 0, 5, 5])
    np.testing.assert_array_equal(np.bincount(more.forget.labels), [0, 9, 0, 9])
    assert set(chosen(few.forget)) < set(chosen(more.forget))
    assert chosen(few.forget) != list(range(1, 20, 4))  # not just the first images
    tests = evaluation_sets(data(["alley"], test_per_class=3), Many())
    np.testing.assert_array_equal(np.bincount(tests.retain.labels), [3, 0, 3, 3])


def test_general_set_excludes_forget_and_retain_classes():
    assert general_set(data(["alley"]), Many()) is None
    images = general_set(data([0], [1], general=("rest",)), Many())
    np.testing.assert_array_equal(np.bincount(images.labels), [0, 0, 25, 25])
    images = general_set(data([0], [1], proxy=(2,), general=("rest",), general_images=7), Many())
    np.testing.assert_array_equal(images.labels, [3] * 7)
    images = general_set(data([0], [1], general=("aquarium",), general_images=99), Many())
    assert len(images) == 25  # all available images
    assert general_set(data(["alley"], general=("rest",)), Many()) is None  # no class remains
    with pytest.raises(UserError, match="both in config.data.general and in config.data.retain: airfield"):
        general_set(data(["alley"], ["airfield"], general=("airfield",)), Many())


def test_fraction_of_retain_images():
    half = train(data(["alley"], train_per_class=20, retain_ratio=0.5), Many())
    all_images = train(data(["alley"], train_per_class=20), Many())
    np.testing.assert_array_equal(np.bincount(half.retain.labels), [10, 0, 10, 10])
    assert set(chosen(half.retain)) < set(chosen(all_images.retain))
    assert chosen(half.forget) == chosen(all_images.forget)
    np.testing.assert_array_equal(
        np.bincount(train(data(["alley"], retain_ratio=0.01), Many()).retain.labels), [1, 0, 1, 1]
    )
    assert len(evaluation_sets(data(["alley"], retain_ratio=0.5), Many()).retain) == 75
    with pytest.raises(ValueError, match="remove one of the two"):
        data(["alley"], proxy=("rest",), retain_ratio=0.5)


@pytest.fixture
def elsewhere(tmp_path):
    """A folder with the classes alley, forest and sea, with 30 training images each."""
    for split, count in (("train", 30), ("test", 1)):
        for name in ("alley", "forest", "sea"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                (tmp_path / split / name / f"{i}.jpg").write_bytes(b"")
    return str(tmp_path)


def test_proxies_from_another_source(elsewhere):
    sets = train(data(["alley"], proxy=(ProxyConfig("folder", elsewhere, classes=("sea",), count=20),)))
    assert len(sets.retain) == 20 and set(sets.retain.labels) == {2}
    assert sets.retain[0]["name"].startswith(f"{elsewhere}/train/sea/")
    digits = DataConfig("digits", forget=(1,), proxy=(ProxyConfig("digits", classes=(2,)),))
    assert set(training_sets(digits, open_source(digits, "train", 8), 8).retain.labels) == {2}


def test_proxies_mixed_by_weight(elsewhere):
    """Weights 1 : 3, with every image of the larger part."""
    other = ProxyConfig("folder", elsewhere, classes=("forest", "sea"), weight=3.0)
    mixture = train(data(["alley"], proxy=("amphitheater", "aquarium", other)), Many()).retain
    assert len(mixture) == 200  # 50 images of the first source are a quarter
    names = np.array(mixture.class_names)[mixture.labels]
    assert list(names[:50]).count("named/aquarium") == list(names[:50]).count("named/amphitheater") == 25
    assert set(names[50:]) == {f"folder {elsewhere}/forest", f"folder {elsewhere}/sea"}
    records = [mixture[i] for i in range(50, 200)]
    assert len({record["name"] for record in records}) == 60
    np.testing.assert_array_equal([record["label"] for record in records], mixture.labels[50:])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"classes": ("see",)}, r"config.data.proxy \(folder\) names the class 'see', .* nearest: sea"),
        ({"count": 5000}, "count is 5000, but there are 60 images"),
        ({"classes": ("alley", "sea")}, r"both in config.data.proxy \(folder\) and in .*forget: alley"),
    ],
)
def test_invalid_proxies_from_another_source(elsewhere, fields, message):
    """No proxy class may have the name of a forget class; "rest" excludes it."""
    with pytest.raises(UserError, match=message):
        train(data(["alley"], proxy=(ProxyConfig("folder", elsewhere, **fields),)))
    rest = ProxyConfig("folder", elsewhere)
    assert set(train(data(["alley"], proxy=(rest,))).retain.labels) == {1, 2}
    with pytest.raises(UserError, match="names the source folder .* twice"):
        train(data(["alley"], proxy=(rest, rest)))


@pytest.mark.parametrize(
    ("forget", "retain", "fields", "message"),
    [
        ("alley", 7, {}, "config.data.retain names the class '7'"),
        ("aquarium", "airfield", {}, "forget set is empty"),
        ("alley", "rest", dict(proxy=("rest",)), "config.data.retain and config.data.proxy are both 'rest'"),
        ("alley", "airfield", dict(proxy=("alley",)), "both in config.data.proxy and in .*forget: alley"),
        ("alley", "airfield", dict(proxy=("aquarium",)), "config.data.proxy selects no training image"),
        ("alley", "airfield", dict(proxy=("rest", "zoo")), "config.data.proxy names the class 'zoo'"),
        ("alley", "airfield", dict(proxy=("places365_i2i",)), "is 'places365_i2i'.* its proxies are 'rest'"),
        ("alley", "airfield", dict(proxy=(ProxyConfig("folder", "/x"),)), "path=/x does not exist"),
        ("alley", "airfield", dict(proxy=(ProxyConfig("digits"),)), "of digits and config.data of named"),
    ],
)
def test_invalid_selections_raise_user_errors(forget, retain, fields, message):
    with pytest.raises(UserError, match=message):
        train(data([forget], [retain], **fields))


PLAIN = SourceConfig("digits")


def names(source):
    return {source[i]["name"] for i in range(len(source))}


def test_train_validation_and_test_are_a_partition():
    config = SourceConfig("digits", validation_fraction=0.15)
    parts = {split: open_source(config, split, 8) for split in ("train", "validation", "test")}
    by_split = {split: names(source) for split, source in parts.items()}
    assert not by_split["train"] & by_split["validation"] and not by_split["validation"] & by_split["test"]
    assert by_split["train"] | by_split["validation"] == names(open_source(PLAIN, "train", 8))
    assert by_split["test"] == names(open_source(PLAIN, "test", 8))
    before = np.bincount(open_source(PLAIN, "train", 8).labels)
    np.testing.assert_array_equal(np.bincount(parts["validation"].labels), np.rint(0.15 * before))
    with pytest.raises(UserError, match="validation_fraction is 0, so there are no validation images"):
        open_source(PLAIN, "validation", 8)


def test_validation_images_are_stable_when_files_are_added(tmp_path):
    for number in range(20):
        path = tmp_path / "cat" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    config = SourceConfig("folder", str(tmp_path), test_fraction=0.25, validation_fraction=0.2)
    before = {split: names(open_source(config, split, 8)) for split in ("train", "validation", "test")}
    assert [len(images) for images in before.values()] == [12, 3, 5]
    (tmp_path / "cat" / "new.jpg").write_bytes(b"x")
    after = names(open_source(config, "train", 8))
    assert len(before["train"] & after) >= 10  # an additional image shifts two boundaries by at most one


def test_retain_and_forget_classes_of_the_validation_images():
    data = DataConfig(source="digits", forget=("7",), retain=("0", "1"), validation_fraction=0.1)
    source = open_source(data, "validation", 8)
    sets = validation_sets(data, source)
    assert set(sets.forget.labels) == {7} and set(sets.retain.labels) == {0, 1}
    training = training_sets(data, open_source(data, "train", 8), 8)
    assert not names(training.retain) & names(sets.retain)
