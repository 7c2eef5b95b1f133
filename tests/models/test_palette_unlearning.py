"""Unlearning of Palette against the release on `palette_process`: ours and all baselines.

The release averages over the full batch with the rows of the other label set to zero; ours averages
over the rows of each set. With n_r retain rows out of n its terms are n_r/n of ours, for retain and
forget rows in equal numbers 1/2 of ours, in all losses and gradients alike.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2l_jax.losses import UnlearningInputs, encoder_unlearning_loss, feature_distance
from l2l_jax.models import mapping
from l2l_jax.models.palette.convert import UNET as TABLE
from tests.models.test_unet import TINY, parts_of
from tests.reference_arrays import Case, nhwc

CASE = Case("palette_process")
ALPHA = 0.25
IMAGES = nhwc(CASE["y_0"])
MASK = CASE["mask"][:, 0].astype(bool)
DRAW = {
    "mask": MASK,
    "gamma": CASE["sample_gammas"][:, 0],
    "filling": nhwc(CASE["y_cond"]),  # only the part inside the mask is read
    "noise": nhwc(CASE["noise"]),
}
ORDERED, MIXED = CASE["labels"], CASE["labels_mixed"]  # +1 retain, −1 forget


@pytest.fixture(scope="module")
def student():
    return mapping.to_flax(TABLE, CASE.state_dict(), parts_of(TINY))


@pytest.fixture(scope="module")
def teacher():
    return mapping.to_flax(TABLE, CASE.state_dict("teacher:"), parts_of(TINY))


@functools.cache
def views():
    """What the student sees, and that with pure noise inside the mask."""
    corrupted = jax.jit(TINY.corrupt_with)(IMAGES, DRAW)
    return jax.device_get((corrupted, jax.jit(TINY.pure_noise_inside)(corrupted)))


@pytest.fixture(scope="module")
def corrupted():
    return views()[0]


@pytest.fixture(scope="module")
def hidden():
    return views()[1]


@jax.jit
def forward(params, inputs, gamma):
    """Features and predicted noise."""
    corrupted = {"inputs": inputs, "gamma": gamma}
    return TINY.encode(params["encoder"], corrupted), TINY.predict(params, corrupted)


@jax.jit
def ours(encoder, teacher, inputs):
    """The paper's loss with the release's factor, and its gradient."""

    def loss(encoder):
        total, _ = encoder_unlearning_loss(TINY.encode, encoder, teacher, inputs, alpha=ALPHA)
        return total / 2

    return jax.value_and_grad(loss)(encoder)


@jax.jit
def own_loss(params, corrupted, weights):
    """Weighted sum over the rows of the family's own loss, and its gradient."""
    loss = lambda p: jnp.sum(weights * TINY.generative_loss(p, IMAGES, corrupted))  # noqa: E731
    return jax.value_and_grad(loss)(params)


@jax.jit
def feature_loss(encoder, corrupted, targets, weights):
    """Weighted sum over the rows of the features' distance to `targets`, and its gradient."""
    loss = lambda e: jnp.sum(weights * feature_distance(TINY.encode(e, corrupted), targets))  # noqa: E731
    return jax.value_and_grad(loss)(encoder)


def rows(tree, chosen):
    return jax.tree.map(lambda x: np.asarray(x)[chosen], tree)


def by_label(labels, retain, forget):
    """The rows of `retain` where the label is +1, of `forget` where it is −1."""

    def leaf(r, f):
        return np.where((labels > 0).reshape(-1, *[1] * (np.ndim(r) - 1)), r, f)

    return jax.tree.map(leaf, retain, forget)


def weights_of(labels, forget):
    """Weights of the rows: the release divides every sum by the full batch of four."""
    return np.where(labels > 0, 1, forget).astype(np.float32) / 4


def check(name, loss, grads):
    """Loss to 3e-6, norm of the gradient to 1e-5, gradients to 1e-4 of their largest entry."""
    np.testing.assert_allclose(loss, CASE[f"loss/{name}"], rtol=3e-6)
    grads = mapping.to_torch(TABLE, grads)
    norm = np.sqrt(sum(np.square(g.astype(np.float64)).sum() for g in grads.values()))
    np.testing.assert_allclose(norm, CASE[f"gradnorm/{name}"], rtol=1e-5)
    expected = [key for key in CASE._arrays.files if key.startswith(f"grad/{name}/")]
    assert expected
    for key in expected:
        scale = np.abs(CASE[key]).max()
        found = grads[key.removeprefix(f"grad/{name}/")]
        np.testing.assert_allclose(found / scale, CASE[key] / scale, atol=1e-4, err_msg=key)


def test_what_student_and_teacher_see(corrupted, hidden):
    np.testing.assert_array_equal(corrupted["inputs"], nhwc(CASE["unet_in_student"]))
    composite = by_label(ORDERED, corrupted, hidden)["inputs"]
    np.testing.assert_allclose(composite, nhwc(CASE["unet_in_teacher"]), atol=2.5e-7)
    noisy = np.where(MASK[..., None], nhwc(CASE["q_sample_noisy"]), IMAGES)
    np.testing.assert_allclose(composite[..., 3:], noisy, atol=2.5e-7)


@pytest.mark.parametrize("name, labels", [("ours", ORDERED), ("ours_mixed", MIXED)])
def test_ours(student, teacher, corrupted, hidden, name, labels):
    retain, forget = labels > 0, labels < 0
    inputs = UnlearningInputs(rows(corrupted, retain), rows(corrupted, forget), rows(hidden, forget))
    loss, grads = ours(student["encoder"], teacher["encoder"], inputs)
    check(name, loss, {"encoder": grads})


def test_ours_map_by_map(student, teacher, corrupted, hidden):
    features, _ = forward(student, corrupted["inputs"], DRAW["gamma"])
    composite = by_label(ORDERED, corrupted, hidden)["inputs"]
    targets, _ = forward(teacher, composite, DRAW["gamma"])
    weights = weights_of(ORDERED, ALPHA)
    distances = jax.jit(lambda *pairs: [feature_distance(f, t) for f, t in zip(*pairs, strict=True)])
    terms = [np.sum(distance * weights) for distance in jax.device_get(distances(features, targets))]
    np.testing.assert_allclose(terms, CASE["ours_feature_losses"], rtol=3e-6)


def test_three_steps_of_adam(student, teacher, corrupted, hidden):
    inputs = UnlearningInputs(rows(corrupted, [0, 1]), rows(corrupted, [2, 3]), rows(hidden, [2, 3]))
    adam = optax.adam(5e-5)

    @jax.jit
    def update(encoder, state, grads):
        updates, state = adam.update(grads, state)
        return optax.apply_updates(encoder, updates), state

    encoder, losses = student["encoder"], []
    state = jax.jit(adam.init)(encoder)
    for _ in range(4):
        loss, grads = ours(encoder, teacher["encoder"], inputs)
        losses.append(loss)
        encoder, state = update(encoder, state, grads)
    np.testing.assert_allclose(losses, CASE["adam_losses"], rtol=5e-6)


@pytest.mark.parametrize("name", ["composite_plain", "noisy_label", "noisy_label_mixed"])
def test_noisy_label(student, corrupted, hidden, name):
    """The own loss of what the teacher of `ours` would see: pure noise is the ground truth."""
    labels = MIXED if name.endswith("_mixed") else ORDERED
    composite = by_label(labels, corrupted, hidden)
    check(name, *own_loss(student, composite, weights_of(labels, ALPHA)))


def test_max_loss(student, corrupted):
    check("max_loss", *own_loss(student, corrupted, weights_of(ORDERED, -ALPHA)))


@pytest.mark.parametrize("name, labels", [("retain_label", ORDERED), ("retain_label_mixed", MIXED)])
def test_retain_label(student, teacher, corrupted, name, labels):
    """MSE of outputs = the own loss with the wanted output as the noise and a mask everywhere.

    The i-th row of the batch, if to be forgotten, gets the i-th retain row, counted in a circle.
    """
    _, output = forward(teacher, corrupted["inputs"], DRAW["gamma"])
    retain = np.asarray(output)[labels > 0]
    target = by_label(labels, np.asarray(output), np.concatenate([retain, retain]))
    wanted = {**corrupted, "noise": target, "mask": np.ones_like(MASK)}
    check(name, *own_loss(student, wanted, weights_of(labels, ALPHA)))


def test_max_loss_of_the_encoder(student, teacher, corrupted):
    features, _ = forward(teacher, corrupted["inputs"], DRAW["gamma"])
    weights = weights_of(ORDERED, -ALPHA)
    loss, grads = feature_loss(student["encoder"], corrupted, features, weights)
    check("max_loss_encoder", loss, {"encoder": grads})


def test_random_encoder(student, teacher, corrupted, hidden):
    """Forget rows are sent to Gaussian noise with the statistics of each of the teacher's maps."""
    composite = by_label(ORDERED, corrupted, hidden)["inputs"]
    features = [np.asarray(f) for f in forward(teacher, composite, DRAW["gamma"])[0]]
    drawn = [nhwc(CASE[f"drawn/random_encoder/{i}"]) for i in range(len(features))]
    noise = [d * f.std(ddof=1) + f.mean() for d, f in zip(drawn, features, strict=True)]
    targets = tuple(by_label(ORDERED, features, noise))
    weights = weights_of(ORDERED, ALPHA)
    loss, grads = feature_loss(student["encoder"], corrupted, targets, weights)
    check("random_encoder", loss, {"encoder": grads})
