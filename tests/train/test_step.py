"""The step: what it trains, accumulates and averages; on many devices: test_parallel.py."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from l2l_jax.methods.base import pretraining_objective
from l2l_jax.methods.encoder import Encoder
from l2l_jax.train import sharding
from l2l_jax.train.optim import TrainingConfig, make_optimizer
from l2l_jax.train.step import make_step, placed_state
from tests.fixtures.training import TINY_MAE

MODEL = dataclasses.replace(TINY_MAE, image_size=16, width=16, decoder_width=16)
CONFIG = TrainingConfig(steps=20, batch_size=8, learning_rate=1e-2, warmup_steps=2)
RNG = np.random.default_rng(0)
IMAGES = RNG.random((5, 2, 8, 16, 16, 3)).astype(np.float32)
UNLEARN = Encoder().objective(MODEL)


def batches(objective):
    for images in IMAGES:
        yield dict(zip(objective.sets, images, strict=False))


OPTIMIZER = make_optimizer(CONFIG)


@functools.cache
def compiled_step(objective, ema_decay=0.0):
    """A step of all tests, traced once for any devices."""
    config = dataclasses.replace(CONFIG, ema_decay=ema_decay)
    return jax.jit(make_step(objective, OPTIMIZER, seed=3, config=config))


def run(objective, params, *, ema_decay=0.0):
    """Five steps; the trained parameters, the average and the metrics of every step."""
    mesh = sharding.make_mesh(jax.devices()[:1])
    step = compiled_step(objective, ema_decay)
    trained = {part: params[part] for part in objective.trained}
    state = placed_state(trained, OPTIMIZER, mesh, ema=ema_decay > 0, alpha=0.25)
    frozen = sharding.place({part: params[part] for part in objective.frozen}, mesh)
    history = []
    for batch in batches(objective):
        state, metrics = step(state, frozen, sharding.shard_batch(batch, mesh))
        history.append(jax.device_get(metrics))
    return jax.device_get(state), history


@pytest.fixture(scope="module")
def params():
    return jax.device_get(jax.jit(MODEL.init)(jax.random.key(0)))


@pytest.fixture(scope="module")
def one_device(params):
    return run(UNLEARN, params)


def test_only_the_encoder_is_trained_and_has_optimizer_state(one_device):
    state, _ = one_device
    assert set(state.params) == {"encoder"}
    count = sum(x.size for x in jax.tree.leaves(state.params))
    moments = sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim)
    assert moments == 2 * count
    assert "decoder" not in UNLEARN.frozen  # it need not even be on the devices


def test_before_the_first_update_the_retain_term_is_zero(one_device):
    """Student and teacher are equal then, and see the same draw of T."""
    first = one_device[1][0]
    assert first["retain"] == 0 and first["forget"] > 0.01
    np.testing.assert_allclose(first["loss"], 0.25 * first["forget"], rtol=1e-6)


def test_pretraining_trains_encoder_and_decoder_on_one_set(params):
    (phase,) = MODEL.pretraining_stages()
    objective = pretraining_objective(phase, tuple(params))
    assert objective.trained == ("encoder", "decoder") and objective.frozen == ()
    _, history = run(objective, params)
    assert history[-1]["loss"] < history[0]["loss"]


def on_one_device(params):
    """What `run` gives its steps: the state before the first, what is frozen, and the batches."""
    mesh = sharding.make_mesh(jax.devices()[:1])
    trained, frozen = ({part: params[part] for part in names} for names in (UNLEARN.trained, UNLEARN.frozen))
    state = placed_state(trained, OPTIMIZER, mesh, ema=False, alpha=0.25)
    placed = (sharding.shard_batch(batch, mesh) for batch in batches(UNLEARN))
    return state, sharding.place(frozen, mesh), placed


def test_moving_average(params):
    """ema ← 0.9 ema + 0.1 params after every step; the average is the result."""
    state, _ = run(UNLEARN, params, ema_decay=0.9)
    plain, frozen, placed = on_one_device(params)
    expected = params["encoder"]["cls_token"].astype(np.float64)
    for batch in placed:
        plain, _ = compiled_step(UNLEARN)(plain, frozen, batch)
        expected = 0.9 * expected + 0.1 * np.asarray(plain.params["encoder"]["cls_token"], np.float64)
    np.testing.assert_allclose(state.ema["encoder"]["cls_token"], expected, atol=1e-6)
    assert state.result is state.ema and plain.result is plain.params


def test_randomness_follows_the_step_number(params):
    """Two steps on one batch draw differently; the same step twice draws the same."""
    state, frozen, placed = on_one_device(params)
    step, batch = compiled_step(UNLEARN), next(placed)
    first = step(state, frozen, batch)[1]["forget"]
    assert step(state, frozen, batch)[1]["forget"] == first
    number = jax.device_put(np.int32(1), state.step.sharding)
    later = step(state.replace(step=number), frozen, batch)[1]["forget"]
    assert later != first
