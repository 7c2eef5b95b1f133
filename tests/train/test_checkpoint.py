"""Checkpoints of any mesh can be restored on any other mesh, bit-exactly."""

from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from l2l_jax.train import checkpoint as training_state
from l2l_jax.train import sharding
from l2l_jax.train.checkpoint import Checkpointer
from l2l_jax.train.optim import TrainingConfig, make_optimizer
from l2l_jax.train.sharding import MeshConfig
from l2l_jax.train.step import placed_state

OPTIMIZER = make_optimizer(TrainingConfig(steps=10, batch_size=8, learning_rate=0.1))


PARAMS = {"kernel": np.zeros((64, 64), np.float32), "bias": np.zeros(64, np.float32)}  # kernel is split


def state_on(data, model):
    mesh = sharding.make_mesh(jax.devices()[: data * model], MeshConfig(data, model))
    return placed_state(sharding.place(PARAMS, mesh), OPTIMIZER, mesh, ema=True)


def test_threads_save_at_the_same_time(tmp_path):
    def save(number):
        state = {"weights": np.full((number + 1, 3), number, np.float32)}
        checkpointer = Checkpointer(tmp_path / str(number))
        for step in range(3):
            checkpointer.save(step, jax.device_put(state), {"number": number})
        checkpointer.wait()
        restored = checkpointer.restore_newest(jax.device_put(state))
        checkpointer.close()
        return restored

    with ThreadPoolExecutor(4) as pool:
        for number, (state, facts) in enumerate(pool.map(save, range(8))):
            assert facts == {"number": number}
            np.testing.assert_array_equal(state["weights"], np.full((number + 1, 3), number))


def after_pmap(state):
    """Return the state as after `pmap`: replicated on all devices of a separate mesh."""
    return jax.device_put(state, NamedSharding(Mesh(np.array(jax.devices()), ("batch",)), P()))


def test_checkpoints_can_be_restored_on_any_mesh(tmp_path, caplog, monkeypatch):
    """8x1 → 4x2 → 1x8 → one device → 2x2 → pmap → 8x1, each saving the state that it restored."""
    monkeypatch.setattr(training_state, "SLICED_FROM", 2**11)  # eighths of the kernel
    rng = np.random.default_rng(0)
    state = state_on(8, 1)
    expected = jax.tree.map(lambda x: rng.integers(0, 99, x.shape).astype(x.dtype), state)
    state = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), expected, state)
    for step, sizes in enumerate([(4, 2), (1, 8), (1, 1), (2, 2), "pmap", (8, 1)]):
        checkpointer = Checkpointer(tmp_path)
        checkpointer.save(step, state, {"place": step})
        checkpointer.wait()
        like = after_pmap(state_on(8, 1)) if sizes == "pmap" else state_on(*sizes)
        with caplog.at_level("INFO", logger="l2l_jax"):
            state, place = checkpointer.restore_newest(like)
        checkpointer.close()
        assert place == {"place": step}
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), expected)
        alike = jax.tree.map(lambda x, y: x.sharding.is_equivalent_to(y.sharding, x.ndim), state, like)
        assert all(jax.tree.leaves(alike))
    lines = [record.getMessage() for record in caplog.records if "was written on" in record.getMessage()]
    assert len(lines) == 5  # 8x1 and pmap have the same sharding
    assert lines[1] == (
        "The checkpoint was written on 8 devices of 1 processes, parameters in 2 parts; "
        "it resumes on 8 devices of 1 processes, parameters in 8 parts"
    )
    assert lines[2].endswith("it resumes on 1 devices of 1 processes")
