"""Unlearning without training steps, compared with solutions of dense systems in NumPy."""

import dataclasses

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from l2l_jax.methods.base import Objective, OneShot
from l2l_jax.methods.ntk import Ntk
from l2l_jax.methods.restrictions import adapt, restrict
from l2l_jax.models.adapters import ADAPTER
from l2l_jax.models.layers.convolution import convolution
from l2l_jax.train import sharding
from l2l_jax.train.loop import Trainer, TrainRun
from l2l_jax.train.optim import TrainingConfig
from tests.fixtures.steps import prepared
from tests.matrix import cells
from tests.train.families import MODELS, images_of, params_of
from tests.train.test_saliency import Batches

RNG = np.random.default_rng(0)
WEIGHTS = {"w": RNG.normal(size=(3, 2)).astype(np.float32)}
ROWS = [
    {split: RNG.normal(size=(16, 5)).astype(np.float32) for split in ("retain", "forget")} for _ in range(2)
]
COUNTS = {"retain": 300, "forget": 100}
DAMPING = 0.1
LAYOUTS = {"one device": ("jit", 1, 1), "4x2": ("jit", 4, 2), "pmap": ("pmap", 8, 1)}


def regression(scale=1.0, outputs=lambda w, x: x @ w, loss=lambda y, t: jnp.square(y - t).sum(axis=1)):
    """A regression whose rows have three inputs and two targets."""
    one_shot = OneShot(
        outputs=lambda params, rows: outputs(params["w"], rows[:, :3]),
        losses=lambda predicted, rows: loss(predicted, rows[:, 3:]),
        scale=scale,
        damping=DAMPING,
        iterations=20,
        batches=2,
    )

    def loss_fn(trained, frozen, inputs, alpha):
        terms = {
            split: one_shot.losses(one_shot.outputs(trained, x), x).mean() for split, x in inputs.items()
        }
        return terms["retain"] + terms["forget"], terms

    return Objective(("w",), (), lambda frozen, batch, rng, axis_name: batch, loss_fn, one_shot=one_shot)


def solved(objective, params, batches, folder, layout="one device", counts=COUNTS, **config):
    kind, data, model = LAYOUTS[layout]
    mesh = sharding.make_mesh(jax.devices()[: data * model], sharding.MeshConfig(data, model))
    training = TrainingConfig(batch_size=16, **config)
    trainer = Trainer("unlearn", objective, training, seed=3, mesh=mesh, parallel=kind)
    return trainer.train(TrainRun(params, batches, folder, counts=counts))


def ridge(weights):
    """Minimize weighted mean squared errors + λ/2 ‖w − w_0‖² over w by the normal equations."""
    matrix, right = DAMPING * np.eye(3), DAMPING * WEIGHTS["w"].astype(float)
    for split, weight in weights.items():
        rows = np.concatenate([batch[split] for batch in ROWS]).astype(float)
        matrix += 2 * weight * rows[:, :3].T @ rows[:, :3] / len(rows)
        right += 2 * weight * rows[:, :3].T @ rows[:, 3:] / len(rows)
    return np.linalg.solve(matrix, right)


def by_convolution(w, x):
    """Compute the product as a convolution of one-pixel images, whose gradient has no forward mode."""
    where = dict(window_strides=(1, 1), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return convolution(x[:, None, None], w[None, None], **where)[:, 0, 0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_update_of_a_linear_model_matches_ridge_regressions(layout, tmp_path):
    outputs = dict(outputs=by_convolution) if layout == "one device" else {}
    after = solved(regression(1.5, **outputs), WEIGHTS, Batches(ROWS), tmp_path, layout, accumulate=2)
    move = ridge({"retain": 0.75}) - ridge({"retain": 0.75, "forget": 0.25})
    np.testing.assert_allclose(after["w"], WEIGHTS["w"] + 1.5 * move, atol=2e-5)
    assert np.abs(move).max() > 0.02 and not list(tmp_path.iterdir())


def test_update_with_a_cross_entropy_uses_its_curvature(tmp_path):
    """Two logits per row: gradient p − t, curvature diag(p) − p pᵀ; the two systems are solved by NumPy."""

    def loss(logits, targets):
        return -(jax.nn.softmax(targets) * jax.nn.log_softmax(logits)).sum(axis=1)

    after = solved(regression(loss=loss), WEIGHTS, Batches(ROWS), tmp_path)
    slopes, curvatures = {}, {}
    for split in ("retain", "forget"):
        rows = np.concatenate([batch[split] for batch in ROWS]).astype(float)
        x, p = rows[:, :3], softmax(rows[:, :3] @ WEIGHTS["w"].astype(float), axis=1)
        slopes[split] = (x.T @ (p - softmax(rows[:, 3:], axis=1))).ravel() / len(rows)
        inner = p[:, :, None] * np.eye(2) - p[:, :, None] * p[:, None]
        curvatures[split] = np.einsum("ni,nj,nab->iajb", x, x, inner).reshape(6, 6) / len(rows)
    damping = DAMPING * np.eye(6)
    both = [0.75 * terms["retain"] + 0.25 * terms["forget"] for terms in (curvatures, slopes)]
    complete = -np.linalg.solve(both[0] + damping, both[1])
    retain = -np.linalg.solve(0.75 * curvatures["retain"] + damping, 0.75 * slopes["retain"])
    np.testing.assert_allclose(after["w"] - WEIGHTS["w"], (retain - complete).reshape(3, 2), atol=2e-5)


def test_only_salient_weights_change(tmp_path):
    objective = dataclasses.replace(regression(), saliency=0.5)
    after = solved(objective, WEIGHTS, Batches(ROWS), tmp_path)
    rows = np.concatenate([batch["forget"] for batch in ROWS])
    gradient = rows[:, :3].T @ (rows[:, :3] @ WEIGHTS["w"] - rows[:, 3:])
    salient = np.abs(gradient) >= np.sort(np.abs(gradient).ravel())[-3]
    np.testing.assert_array_equal(after["w"] != WEIGHTS["w"], salient)


def only(row):
    return jax.tree.map(lambda x: x[None], row)


def dense(objective, params, batch):
    """Compute the update with explicit Jacobian and Hessian in the outputs, in float64."""
    trained = objective.initial(params, jax.random.key(3))
    frozen = {part: params[part] for part in objective.frozen}
    inputs = prepared(objective, params, batch, jax.random.fold_in(jax.random.key(3), 0))
    vector, shaped = jax.flatten_util.ravel_pytree(trained)

    def outputs(x, row):
        return objective.one_shot.outputs(objective.compose(frozen, shaped(x)), only(row))[0]

    def loss(predicted, row):
        return objective.one_shot.losses(predicted[None], only(row))[0]

    def derivatives(x, row):
        predicted = outputs(x, row)
        slope, hessian = (derivative(loss)(predicted, row) for derivative in (jax.grad, jax.hessian))
        return jax.jacrev(outputs)(x, row), slope, hessian

    compiled = jax.jit(jax.vmap(derivatives, (None, 0)))
    gradients, curvatures = {}, {}
    for split, rows in inputs.items():
        jacobian, slope, hessian = (np.asarray(x, float) for x in compiled(vector, rows))
        count, places = len(slope), slope[0].size
        j, g, h = (x.reshape(count, places, -1) for x in (jacobian, slope, hessian))
        g = g[..., 0]
        gradients[split] = np.einsum("npi,np->i", j, g) / count
        curvatures[split] = sum(x.T @ y @ x for x, y in zip(j, h, strict=True)) / count
    damped = objective.one_shot.damping * np.eye(len(vector))
    complete = -np.linalg.solve(
        damped + (curvatures["retain"] + curvatures["forget"]) / 2,
        (gradients["retain"] + gradients["forget"]) / 2,
    )
    retain = -np.linalg.solve(damped + curvatures["retain"] / 2, gradients["retain"] / 2)
    return retain - complete


CELLS = cells(MODELS, ("norms", "lora"), normal=[("mae", "norms")])
"""Families differ only in outputs and losses; above are a product, a convolution and both losses."""


@pytest.mark.slow
@pytest.mark.parametrize(("family", "kind"), CELLS)
def test_every_family(family, kind, tmp_path):
    model, params = MODELS[family], params_of(MODELS[family])
    objective = adapt(Ntk(damping=0.1, iterations=60, batches=1).objective(model), kind, 1)
    (batch,) = images_of(family, 1, 16)
    actual = solved(objective, params, Batches([batch]), tmp_path, counts={})
    start = objective.initial(params, jax.random.key(3))[ADAPTER]
    move, _ = jax.flatten_util.ravel_pytree(jax.tree.map(np.subtract, actual[ADAPTER], start))
    expected = dense(objective, params, batch)
    scale = np.abs(expected).max()
    assert scale > 1e-4
    np.testing.assert_allclose(move, expected, atol=5e-3 * scale)


def test_update_starts_from_the_original():
    with pytest.raises(ValueError, match="leave out saliency_reset"):
        restrict(Ntk().objective(MODELS["mae"]), MODELS["mae"], 0.5, reset=True)
