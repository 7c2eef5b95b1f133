"""Attacks on models whose knowledge is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2l_jax.audit.attacks.membership import membership
from l2l_jax.audit.attacks.training import Images, few_of_each_class, halvings, training_attacks
from l2l_jax.audit.attacks.views import Viewer
from l2l_jax.audit.conclusions import _scored
from l2l_jax.audit.measuring import Meter, load_points, save_points
from l2l_jax.data.splits import Split, training_sets
from l2l_jax.errors import UserError
from l2l_jax.evals.encoder_features import OUTPUT, EncoderFeatures
from l2l_jax.evals.evaluator import Evaluation
from l2l_jax.evals.runner import image_keys, image_rows
from tests.audit.models import Memory, config, remembering

CONFIG = dataclasses.replace(config(), model=Memory())


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    return Evaluation(CONFIG, tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(scope="module")
def training(evaluation):
    return training_sets(CONFIG.data, evaluation.train, 16)


def members_found(evaluation, forget, params):
    measured = membership(Meter(CONFIG, evaluation), params, forget, "memory")
    return _scored(measured["members"]["mse"], measured["others"]["mse"])


def test_what_was_memorised_is_found(evaluation, training):
    params = remembering(training.forget, range(len(training.forget)))
    found = members_found(evaluation, training.forget, params)
    assert found["auc"][1] > 0.9 and found["true_positives"] > 0.9


def test_a_model_that_saw_neither_tells_nothing(evaluation, training):
    params = remembering(training.retain, range(len(training.retain)))
    value, low, high = members_found(evaluation, training.forget, params)["auc"]
    assert low < 0.5 < high and high - low < 0.12


def test_views_wake_what_a_changed_picture_wakes(evaluation, training):
    """Remembered mirror images are found by the view "flip" alone."""
    tests = evaluation.tests["forget"]
    mirrored = {"encoder": tests.read(np.arange(len(tests))).images[:, :, ::-1]}
    viewer = Viewer(Memory(), evaluation.inpainter.mask, 8.0, batch_size=128, seed=0)
    points = viewer(mirrored, tests, lambda restored, labels: None)
    error = {view: found["forget"]["mse"].mean() for view, found in points.items()}
    assert set(error) == {"flip", "noise", "gradient", "centre 4", "left 8", "right 8", "top 8", "bottom 8"}
    assert error.pop("flip") < 1e-12 and min(error.values()) > 0.01


class Straight(Memory):
    """Fills the mask with the mean of the visible pixels, which are blind by a factor."""

    def inpaint(self, params, images, mask, rng):
        mean = images[:, ~mask].mean(axis=1)[:, None, None]
        return jnp.where(mask[None, ..., None], jnp.clip(mean, 0, 1), images)


def test_the_gradient_view_moves_visible_pixels_as_far_as_it_may(evaluation):
    """A mean of pixels can be moved by just as much as each of them."""
    tests = evaluation.tests["forget"]
    viewer = Viewer(Straight(), evaluation.inpainter.mask, 25.5, batch_size=128, seed=0)
    viewer._views = [(view, compute) for view, compute in viewer._views if view.name == "gradient"]
    (found,) = viewer({"encoder": np.zeros(1)}, tests, lambda *_: None).values()
    images = tests.read(np.arange(len(tests))).images
    inside, outside = images[:, viewer.mask], images[:, ~viewer.mask]
    reached = [np.clip(outside + move, 0, 1).mean(1) for move in (-0.1, 0.1)]
    best = np.clip(inside.mean(1), *reached)  # the mean restoration nearest to the truth
    least = np.square(inside - best[:, None]).mean((1, 2))
    before = np.square(inside - outside.mean(1)[:, None]).mean((1, 2))
    errors = found["forget"]["mse"]
    assert (errors >= least - 1e-6).all() and (errors <= before + 1e-6).all()
    assert np.mean(errors - least) < 0.1 * np.mean(before - least)


@pytest.mark.parametrize("field", ["remat", "scan"])
def test_features_of_every_layer_are_means_over_places(evaluation, field):
    model = dataclasses.replace(config().model, width=8, depth=2, num_heads=2, **{field: True})
    params = jax.device_get(jax.jit(model.init)(jax.random.key(0)))
    tests = evaluation.tests["forget"]
    found, labels = EncoderFeatures(model, 256, seed=3)(params, tests)
    assert list(found) == ["patch_embed", "blocks_0", "blocks_1", "norm", OUTPUT]
    np.testing.assert_array_equal(labels, tests.labels)
    rows = image_rows(tests.read(np.arange(len(tests))), "features")

    @jax.jit
    def encode(image, key):
        return model.encode(params["encoder"], model.corrupt(params, image[None], key))[0].mean(0)

    expected = jax.vmap(encode)(rows["images"], image_keys(3, rows))
    np.testing.assert_allclose(found[OUTPUT], expected, atol=1e-5)
    np.testing.assert_allclose(found["norm"], expected, atol=1e-5)


def test_shots_are_spread_over_the_classes_and_differ_by_seed(training):
    labels = np.asarray(few_of_each_class(training.forget, 12, 0).labels)
    assert sorted(np.unique(labels, return_counts=True)[1]) == [2, 2, 2, 3, 3]

    def names(seed):
        chosen = few_of_each_class(training.forget, 12, seed)
        return {chosen[i]["name"] for i in range(12)}

    assert len(names(0)) == 12 and names(0) == names(0) != names(1)
    with pytest.raises(UserError, match=f"asks for 9999 forget images, but there are {len(training.forget)}"):
        few_of_each_class(training.forget, 9999, 0)


def test_images_of_both_sets_are_each_there_once(training):
    both = Images(("retain", "forget")).source(training, 0)
    names = {both[i]["name"] for i in range(len(both))}
    assert len(both) == len(names) == len(training.retain) + len(training.forget)
    alone = Images(("retain",)).source(Split(training.retain, training.forget), 0)
    assert set(alone.labels) == {0, 1, 2, 3, 4}


def test_training_attacks_train_what_they_say():
    attacks = training_attacks(config().model, config(shots=(3,), steps=400).audit)
    assert list(attacks) == ["retain_tuning", "relearning_3", "fresh_decoder_retain", "fresh_decoder_all"]
    assert attacks["retain_tuning"].looked_at == halvings(400, 5) == (25, 50, 100, 200, 400)
    assert attacks["retain_tuning"].task.trained == ("encoder", "decoder")
    decoder = attacks["fresh_decoder_all"].task
    assert decoder.trained == ("decoder",) and decoder.frozen == ("encoder",)
    model = dataclasses.replace(config().model, width=8, depth=1, num_heads=2)
    params = jax.device_get(jax.jit(model.init)(jax.random.key(0)))
    small = training_attacks(model, config().audit)["fresh_decoder_all"].task
    started = small.start(params, jax.random.key(1))
    assert started["encoder"] is params["encoder"]
    fresh = started["decoder"]["decoder_embed"]["kernel"]
    assert np.abs(fresh - params["decoder"]["decoder_embed"]["kernel"]).max() > 0.01


def test_points_come_back_from_the_disk(tmp_path):
    points = {
        "25": {"forget": {"mse": np.arange(3.0), "right": np.array([True, False, True])}},
        "view: a b": {},
    }
    points["view: a b"] = {"retain": {"mse": np.ones(2)}}
    save_points(tmp_path / "points.npz", points)
    found = load_points(tmp_path / "points.npz")
    assert list(found) == list(points)
    jax.tree.map(np.testing.assert_array_equal, found, points)
