"""ε-constrained unlearning: the direction by hand, and the phases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2l_jax.methods.base import Task
from l2l_jax.methods.constrained import Constrained
from l2l_jax.train import sharding
from l2l_jax.train.optim import TrainingConfig, make_optimizer
from l2l_jax.train.parallel import make_parallel
from l2l_jax.train.sharding import MeshConfig
from l2l_jax.train.step import make_step, placed_state

RNG = np.random.default_rng(0)
GRADIENTS = {of: {"a": RNG.normal(size=(3, 4)), "b": RNG.normal(size=5)} for of in ("retain", "forget")}


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def by_hand(constraint, objective, psi):
    eta = max((psi - constraint @ objective) / (constraint @ constraint + 1e-7), 0)
    return objective + eta * constraint


@pytest.mark.parametrize("opposed", [False, True])
@pytest.mark.parametrize("constraint", ["forget", "retain"])
def test_without_bounds_the_constraint_falls_as_if_alone(constraint, opposed):
    gradients = dict(GRADIENTS)
    if opposed:
        gradients["retain"] = jax.tree.map(lambda x, y: -2 * x + y, GRADIENTS["forget"], GRADIENTS["retain"])
    rule = Constrained(constraint)
    found = flat(rule.combine({}, jax.tree.map(jnp.float32, gradients), jnp.float32(0)))
    c, o = flat(gradients[constraint]), flat(gradients[rule.objective])
    np.testing.assert_allclose(found, by_hand(c, o, c @ c), rtol=1e-5, atol=1e-5)
    assert found @ c >= (c @ c) * (1 - 1e-5)


@pytest.mark.parametrize("alpha, epsilon", [(0.0, 0.5), (0.25, 0.4), (1.0, 0.1), (7.0, 0.1)])
@pytest.mark.parametrize("loss", [0.05, 0.45, 3.0])
def test_with_bounds_it_falls_while_above_epsilon(loss, alpha, epsilon):
    rule = Constrained("forget", (0.1, 0.5))
    terms = {"forget": jnp.float32(loss), "retain": jnp.float32(9)}
    found = flat(rule.combine(terms, jax.tree.map(jnp.float32, GRADIENTS), jnp.float32(alpha)))
    c, o = flat(GRADIENTS["forget"]), flat(GRADIENTS["retain"])
    np.testing.assert_allclose(found, by_hand(c, o, (loss - epsilon) * (c @ c)), rtol=1e-4, atol=1e-5)


def test_a_gradient_that_vanishes_is_no_division_by_zero():
    zero = jax.tree.map(jnp.zeros_like, jax.tree.map(jnp.float32, GRADIENTS["retain"]))
    gradients = {"retain": zero, "forget": jax.tree.map(jnp.float32, GRADIENTS["forget"])}
    found = Constrained("retain").combine({}, gradients, jnp.float32(0))
    np.testing.assert_array_equal(flat(found), flat(gradients["forget"]))


ROWS = RNG.normal(size=(2, 16, 64)).astype(np.float32)
START = RNG.normal(size=64).astype(np.float32)


def linear_task(rule):
    """Loss of a row x: (x · w − y)², y = 1 for retain rows and 0 for forget rows; 64 weights in one array."""

    def prepare(frozen, batch, rng, axis_name=None):
        return {of: {"x": x, "y": jnp.full(len(x), float(of == "retain"))} for of, x in batch.items()}

    def losses(trained, frozen, rows):
        return jnp.square(rows["x"] @ trained["encoder"]["w"] - rows["y"])

    return Task(("encoder",), (), ("retain", "forget"), prepare, losses, gradients=rule)


def steps(kind, data, model, rule, count, accumulate=1):
    """Gradient norms and losses of some steps on a layout, weights split where there is a model axis."""
    mesh = sharding.make_mesh(jax.devices()[: data * model], MeshConfig(data, model))
    parallel = make_parallel(mesh, kind)
    config = TrainingConfig(steps=40, batch_size=16, learning_rate=0.01, clip_norm=0.0, accumulate=accumulate)
    optimizer = make_optimizer(config)
    params = sharding.place({"encoder": {"w": START}}, mesh)
    state = placed_state(params, optimizer, mesh, ema=False, alpha=0.25)
    made = make_step(linear_task(rule), optimizer, seed=0, parallel=parallel, config=config)
    step, found = parallel.compile(made, state), []
    for _ in range(count):
        batch = parallel.rows({"retain": ROWS[0], "forget": ROWS[1]})
        state, metrics = step(state, {}, batch)
        found.append(jax.device_get(metrics))
    return found


@pytest.mark.parametrize(
    "layout", [("jit", 1, 1), ("jit", 8, 1), ("jit", 2, 4), ("pmap", 8, 1), ("jit", 1, 1, 4)], ids=str
)
def test_a_step_is_numpys_on_any_devices(layout, monkeypatch):
    """The products are of the whole batch's gradients: means of products of parts would be others."""
    monkeypatch.setattr(sharding, "SHARDED_FROM", 32)
    kind, data, model, *accumulate = layout
    found = steps(kind, data, model, Constrained("forget", (0.5, 4.5)), 3, *accumulate)

    def gradient(rows, y):
        error = rows.astype(float) @ START - y
        return np.square(error).mean(), 2 * (error[:, None] * rows).mean(0)

    (retain, objective), (forget, constraint) = gradient(ROWS[0], 1), gradient(ROWS[1], 0)
    epsilon = 4.5 - 0.25 * 4.0
    expected = by_hand(constraint, objective, (forget - epsilon) * (constraint @ constraint))
    first = found[0]
    np.testing.assert_allclose(first["grad_norm"], np.linalg.norm(expected), rtol=1e-4)
    np.testing.assert_allclose([first["retain"], first["forget"]], [retain, forget], rtol=1e-5)
    assert first["loss"] == first["retain"]
    assert found[2]["forget"] < found[0]["forget"]
