"""State, moving average, random numbers and pretraining; losses: tests/methods; devices: test_parallel.py."""

import jax
import numpy as np

from l2l_jax.methods.base import pretraining_objective
from l2l_jax.methods.encoder import Encoder
from l2l_jax.train import sharding
from l2l_jax.train.optim import TrainingConfig, make_optimizer
from l2l_jax.train.parallel import Parallel
from l2l_jax.train.step import make_step, placed_state
from tests.fixtures import steps
from tests.fixtures.linear import BATCH, LINEAR, STUDENT, TEACHER

CONFIG = TrainingConfig(steps=20, batch_size=400, learning_rate=1e-2, warmup_steps=2, ema_decay=0.9)
OBJECTIVE, OPTIMIZER = Encoder().objective(LINEAR), make_optimizer(CONFIG)
MESH = sharding.make_mesh(jax.devices()[:1])
STEP = jax.jit(make_step(OBJECTIVE, OPTIMIZER, CONFIG, Parallel(MESH), seed=3))
FROZEN = {part: TEACHER[part] for part in OBJECTIVE.frozen}


def start():
    return placed_state({"encoder": TEACHER["encoder"]}, OPTIMIZER, MESH, ema=True, alpha=0.25)


def test_moving_average_and_state():
    """ema ← 0.9 ema + 0.1 params after every step is the result. Only the encoder is in the state."""
    state, expected, first = start(), TEACHER["encoder"].astype(float), None
    for _ in range(5):
        state, metrics = STEP(state, FROZEN, BATCH)
        first = first or metrics
        expected = 0.9 * expected + 0.1 * np.asarray(state.params["encoder"], float)
    np.testing.assert_allclose(state.ema["encoder"], expected, atol=1e-6)
    assert state.result is state.ema and state.replace(ema=None).result is state.params
    assert int(state.step) == 5 and set(state.params) == {"encoder"} and "decoder" not in OBJECTIVE.frozen
    assert sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim) == 2 * expected.size
    # Student and teacher are initially equal, and receive the same sample of T.
    assert first["retain"] == 0 and first["forget"] > 0.01
    np.testing.assert_allclose(first["loss"], 0.25 * first["forget"], rtol=1e-6)


def test_randomness_depends_on_the_step_number():
    """Two steps on one batch have different random numbers; repeating a step gives the same."""
    state = start()
    first = STEP(state, FROZEN, BATCH)[1]["forget"]
    assert STEP(state, FROZEN, BATCH)[1]["forget"] == first
    number = jax.device_put(np.int32(1), state.step.sharding)
    assert STEP(state.replace(step=number), FROZEN, BATCH)[1]["forget"] != first


def test_pretraining_uses_one_set():
    (stage,) = LINEAR.pretraining_stages()
    objective = pretraining_objective(stage, tuple(TEACHER))
    assert (objective.trained, objective.frozen, objective.sets) == (
        ("encoder", "decoder"),
        ("gain",),
        ("train",),
    )
    inputs = steps.prepared(objective, TEACHER, {"train": BATCH["retain"]})
    metrics, _ = steps.step(objective, STUDENT, TEACHER, inputs, 0.0)
    corrupted = np.asarray(inputs["train"]["corrupted"], float)
    error = corrupted @ STUDENT["encoder"] @ STUDENT["decoder"] - BATCH["retain"].reshape(-1, 12)
    np.testing.assert_allclose(metrics["loss"], np.square(error).mean(), rtol=1e-5)
