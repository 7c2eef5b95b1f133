"""The compiled training step of every method on every family, compared with its formula and derivatives."""

import jax
import jax.flatten_util
import jax.numpy as jnp
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


def distance(x, y):
    return sum(jnp.square(a - b).mean() for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True))


def terms(method, model, student, teacher, inputs):
    r, f = inputs["retain"], inputs["forget"]

    def encode(params, corrupted):
        return model.encode(params["encoder"], corrupted)

    def own(params, rows):
        return model.generative_loss(params, rows["images"], rows["corrupted"]).mean()

    if method in ("encoder", "epsilon", "whole"):
        retain = distance(encode(student, r), encode(teacher, r))
        forget = distance(encode(student, f), encode(teacher, inputs["noise"]))
        if method == "whole":
            retain += distance(model.predict(student, r), model.predict(teacher, r))
            forget += distance(model.predict(student, f), model.predict(teacher, inputs["noise"]))
        return retain, forget
    if method == "retain_label":
        target = model.predict(teacher, r)
        return distance(model.predict(student, r), target), distance(model.predict(student, f), target)
    if method == "random_encoder":
        return distance(encode(student, r), encode(teacher, r)), distance(encode(student, f), inputs["noise"])
    if method == "undo":
        predicted = model.predict(student, r["corrupted"])
        truth = model.prediction_loss(predicted, r["images"], r["corrupted"])
        imitation = model.imitation_loss(predicted, r["corrupted"], r["imitated"])
        features = distance(encode(student, f.get("plain", f["corrupted"])), f["noise"])
        return (truth.mean() + imitation.mean()) / 2, own(student, f) + 0.3 * features
    attacked = student
    if method == "relearn_aware":
        slopes = jax.grad(lambda params: own({**student, **params}, r))(trained_parts(model, student))
        moves = jax.tree.map(lambda g: jax.lax.stop_gradient(1e-3 * jnp.sign(g)), slopes)
        attacked = {**student, **jax.tree.map(jnp.subtract, trained_parts(model, student), moves)}
    return own(student, r), own(attacked, f)


def trained_parts(model, params):
    return {part: params[part] for part in model.generative_parts}


def expected(method, model, student, teacher, inputs):
    @jax.jit
    def both(params):
        def features(params):
            return terms(method, model, {**student, **params}, teacher, inputs)

        result, pullback = jax.vjp(features, params)
        return result, jax.vmap(pullback)((jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])))[0]

    result, slopes = jax.device_get(both(trained_parts(model, student)))
    of_retain, of_forget = (jax.tree.map(lambda x, k=k: x[k], slopes) for k in (0, 1))
    weight = -ALPHA if method == "max_loss" else ALPHA
    if method == "epsilon":  # the forget term decreases as if it were alone
        o, c = (jax.flatten_util.ravel_pytree(x["encoder"])[0] for x in (of_retain, of_forget))
        weight = max((c @ c - c @ o) / (c @ c + 1e-7), 0)
    return result, jax.tree.map(lambda x, y: x + weight * y, of_retain, of_forget)


CELLS = cells(list(METHODS), MODELS, normal=[("undo", "mae")])
"""Every run covers a method that calls most functions of a family. All methods are compared with NumPy in
test_by_hand.py, and released methods on their families in test_reference.py."""


@pytest.mark.slow
@pytest.mark.parametrize(("method", "family"), CELLS)
def test_loss_terms_and_gradients(method, family):
    model, (batch,) = MODELS[family], images_of(family, 1, 4)
    objective = METHODS[method](**OPTIONS.get(method, {})).objective(model)
    teacher = params_of(model)  # where the retain terms of some methods are 0
    student = {**teacher, **jax.tree.map(lambda x: np.float32(1.1) * x, trained_parts(model, teacher))}
    inputs = prepared(objective, teacher, batch)
    metrics, gradient = step(objective, student, teacher, inputs, ALPHA)
    (retain, forget), slopes = expected(method, model, student, teacher, inputs)
    np.testing.assert_allclose([metrics["retain"], metrics["forget"]], [retain, forget], rtol=2e-5)
    weight = {"max_loss": -ALPHA, "epsilon": 0}.get(method, ALPHA)
    np.testing.assert_allclose(metrics["loss"], retain + weight * forget, rtol=2e-5)
    assert set(gradient) == set(objective.trained)
    for part, actual in gradient.items():
        scale = max(np.abs(x).max() for x in jax.tree.leaves(slopes[part]))
        for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(slopes[part]), strict=True):
            np.testing.assert_allclose(x, y, atol=2e-4 * scale)
    assert all(x > 1e-4 for x in (retain, forget))


@pytest.mark.parametrize("family", MODELS)
def test_methods_place_only_the_parts_that_they_read(family):
    model = MODELS[family]
    for method in METHODS:
        objective = METHODS[method]().objective(model)
        trained = ("encoder",) if method in ENCODER_ONLY else model.generative_parts
        original = () if method not in WITH_TEACHER else trained
        assert sorted(objective.frozen) == sorted((*original, *model.corruption_parts))
        assert objective.trained == trained and objective.sets == ("retain", "forget")
