"""The compiled training step of every method on every family, against the chain rule by hand.

Features, outputs and losses of the families are compared with their releases in `tests/models`. Here terms
are computed by NumPy from them, in passes that are not interleaved, and their gradients are vector-Jacobian
products with the derivatives by NumPy.
"""

import functools

import jax
import jax.flatten_util
import numpy as np
import pytest

from l2l_jax.methods import METHODS
from tests.fixtures.steps import prepared, step
from tests.matrix import cells
from tests.train.families import MODELS, images_of, params_of

ALPHA = 0.5
ENCODER_ONLY = ("encoder", "random_encoder", "epsilon")
OPTIONS = {"undo": {"feature_weight": 0.3}, "relearn_aware": {"target": "mean"}}
WITH_TEACHER = (*ENCODER_ONLY, "retain_label", "whole", "undo")


@functools.cache
def student(family):
    """Away from the teacher: at it the retain terms of some methods are 0."""
    params = params_of(MODELS[family])
    trained = {part: jax.tree.map(lambda x: np.float32(1.1) * x, params[part]) for part in parts(family)}
    return {**params, **trained}


def teacher(family):
    return params_of(MODELS[family])


def parts(family):
    return MODELS[family].generative_parts


@functools.cache
def features_and_outputs(family):
    """`(params, corrupted, derivative) -> (features, outputs), gradients`."""
    model = MODELS[family]

    @jax.jit
    def run(params, corrupted, derivative):
        def forward(trained):
            whole = {**params, **trained}
            return model.encode(whole["encoder"], corrupted), model.predict(whole, corrupted)

        found, back = jax.vjp(forward, {part: params[part] for part in parts(family)})
        return found, back(derivative)[0] if derivative is not None else None

    return run


@functools.cache
def own_losses(family):
    """`(params, images, corrupted, target, weights) -> (losses, imitation losses), gradients`."""
    model = MODELS[family]

    @jax.jit
    def run(params, images, corrupted, target, weights):
        def forward(trained):
            predicted = model.predict({**params, **trained}, corrupted)
            truth = model.prediction_loss(predicted, images, corrupted)
            return truth, model.imitation_loss(predicted, corrupted, target)

        found, back = jax.vjp(forward, {part: params[part] for part in parts(family)})
        return found, back(weights)[0]

    return run


class ByHand:
    """Weighted terms of a student and their gradients."""

    def __init__(self, family, params=None):
        self.family, self.params = family, student(family) if params is None else params
        self.gradient = jax.tree.map(np.zeros_like, {part: self.params[part] for part in parts(family)})

    def add(self, gradient):
        self.gradient = jax.tree.map(np.add, self.gradient, jax.device_get(gradient))

    def distance(self, corrupted, target, weight, features=True, outputs=False):
        """Add weight · mean ‖student − target‖² of features, outputs or both; return the mean."""
        run = features_and_outputs(self.family)
        found = jax.device_get(run(self.params, corrupted, None)[0])
        value, derivative = 0.0, []
        for of, wanted, counts in zip(found, target, (features, outputs), strict=True):
            errors = jax.tree.map(lambda x, y: np.subtract(x, y, dtype=float), of, wanted if counts else of)
            value += sum(np.square(x).mean() for x in jax.tree.leaves(errors))
            derivative.append(jax.tree.map(lambda x: np.float32(weight * 2 * x / x.size), errors))
        self.add(run(self.params, corrupted, tuple(derivative))[1])
        return value

    def own(self, rows, weight, imitated=None, share=0.0):
        """Add weight · ((1 − share) · mean own loss + share · mean imitation loss); return the sum."""
        count = len(rows["images"])
        target = teacher_of(self.family, rows["corrupted"])[1] if imitated is None else imitated
        weights = [np.full(count, weight * x / count, np.float32) for x in (1 - share, share)]
        losses, gradient = own_losses(self.family)(
            self.params, rows["images"], rows["corrupted"], target, tuple(weights)
        )
        self.add(gradient)
        return (1 - share) * np.mean(losses[0]) + share * np.mean(losses[1])


def teacher_of(family, corrupted):
    """Features and outputs of the original model."""
    return jax.device_get(features_and_outputs(family)(teacher(family), corrupted, None)[0])


def expected(method, family, inputs):
    """The two terms and the gradient."""
    hand, (r, f) = ByHand(family), (inputs["retain"], inputs["forget"])
    if method == "epsilon":
        objective, constraint = hand, ByHand(family)
        terms = (
            objective.distance(r, teacher_of(family, r), 1),
            constraint.distance(f, teacher_of(family, inputs["noise"]), 1),
        )
        o, c = (jax.flatten_util.ravel_pytree(x.gradient["encoder"])[0] for x in (objective, constraint))
        eta = max((c @ c - c @ o) / (c @ c + 1e-7), 0)
        hand.gradient = jax.tree.map(lambda x, y: x + eta * y, objective.gradient, constraint.gradient)
    elif method in ("encoder", "whole"):
        which = {"outputs": method == "whole"}
        terms = (
            hand.distance(r, teacher_of(family, r), 1, **which),
            hand.distance(f, teacher_of(family, inputs["noise"]), ALPHA, **which),
        )
    elif method == "retain_label":
        target, which = teacher_of(family, r), {"features": False, "outputs": True}
        terms = hand.distance(r, target, 1, **which), hand.distance(f, target, ALPHA, **which)
    elif method == "random_encoder":
        outputs = teacher_of(family, r)[1]
        terms = (
            hand.distance(r, teacher_of(family, r), 1),
            hand.distance(f, (inputs["noise"], outputs), ALPHA),
        )
    elif method == "undo":
        terms = (
            hand.own(r, 1, r["imitated"], share=0.5),
            hand.own(f, ALPHA) + 0.3 * hand.distance(f["plain"], (f["noise"], None), 0.3 * ALPHA),
        )
    elif method == "relearn_aware":
        first = ByHand(family)
        retain = first.own(r, 1)
        attacked = {
            part: jax.tree.map(
                lambda x, g: x - np.float32(1e-3) * np.sign(g), first.params[part], first.gradient[part]
            )
            for part in parts(family)
        }
        there = ByHand(family, {**first.params, **attacked})
        terms = retain, there.own(f, ALPHA)
        hand.gradient = jax.tree.map(np.add, first.gradient, there.gradient)
    else:
        terms = hand.own(r, 1), hand.own(f, -ALPHA if method == "max_loss" else ALPHA)
    return terms, hand.gradient


NORMAL = [("whole", "mae"), ("undo", "mae"), ("relearn_aware", "mae"), ("encoder", "latent_diffusion")]
CELLS = cells(list(METHODS), MODELS, normal=NORMAL)
"""In every run methods that no release has. A method knows of a family only its functions: all methods are
compared with NumPy in test_by_hand.py, and those of the releases, on their families, in test_reference.py."""


@pytest.mark.parametrize(("method", "family"), CELLS)
def test_loss_terms_and_gradients(method, family):
    objective = METHODS[method](**OPTIONS.get(method, {})).objective(MODELS[family])
    (batch,) = images_of(family, 1, 4)
    inputs = prepared(objective, teacher(family), batch)
    metrics, gradient = step(objective, student(family), teacher(family), inputs, ALPHA)
    (retain, forget), by_hand = expected(method, family, inputs)
    np.testing.assert_allclose([metrics["retain"], metrics["forget"]], [retain, forget], rtol=2e-5)
    weight = {"max_loss": -ALPHA, "epsilon": 0}.get(method, ALPHA)
    np.testing.assert_allclose(metrics["loss"], retain + weight * forget, rtol=2e-5)
    assert set(gradient) == set(objective.trained)
    for part, found in gradient.items():
        scale = max(np.abs(x).max() for x in jax.tree.leaves(by_hand[part]))
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(by_hand[part]), strict=True):
            np.testing.assert_allclose(x, y, atol=2e-4 * scale)
    assert all(x > 1e-4 for x in (retain, forget))


@pytest.mark.parametrize("family", MODELS)
def test_methods_keep_no_more_parts_on_the_devices_than_they_read(family):
    model = MODELS[family]
    for method in METHODS:
        objective = METHODS[method]().objective(model)
        trained = ("encoder",) if method in ENCODER_ONLY else parts(family)
        original = () if method not in WITH_TEACHER else trained
        assert sorted(objective.frozen) == sorted((*original, *model.corruption_parts))
        assert objective.trained == trained and objective.sets == ("retain", "forget")
