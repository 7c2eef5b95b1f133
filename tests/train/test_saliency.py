"""Training with a saliency mask: the mask by hand, and no change of other weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2l_jax.losses import noisy_label_loss
from l2l_jax.methods.base import Objective
from l2l_jax.train import loop, saliency, sharding
from l2l_jax.train.loop import Trainer, TrainRun
from l2l_jax.train.optim import TrainingConfig

RNG = np.random.default_rng(0)
PARAMS = {name: RNG.normal(size=(6, 4)).astype(np.float32) for name in ("first", "second", "unused")}
CONFIG = TrainingConfig(6, 16, 0.01, weight_decay=0.5, ema_decay=0.9, checkpoint_every=4, log_every=1)
LAYOUTS = {"one device": ("jit", 1, 1), "4x2": ("jit", 4, 2), "pmap": ("pmap", 8, 1)}


@functools.cache
def linear_objective(share=0.25):
    """Return ‖x (W + V) − 1‖² for rows of 6 values, without randomness; V has little effect."""

    def prepare(frozen, batch, rng, axis_name=None):
        return batch

    def loss(trained, frozen, inputs, alpha):
        def losses(rows):
            return jnp.square(rows @ (trained["first"] + 0.1 * trained["second"]) - 1).mean(axis=1)

        return noisy_label_loss(losses(inputs["retain"]), losses(inputs["forget"]), alpha=alpha)

    return Objective(("first", "second"), (), prepare, loss, saliency=share)


class Batches:
    """Equal batches for every iterator; the first iterator, used in training, fails at batch `crash_at`."""

    value_range = (0.0, 1.0)

    def __init__(self, batches, crash_at=None):
        self._batches, self._crash_at, self._opened = list(batches), crash_at, 0

    def __iter__(self):
        self._opened += 1
        return Iterator(self._batches, self._crash_at if self._opened == 1 else None)


class Iterator:
    def __init__(self, batches, crash_at):
        self._batches, self._crash_at, self._taken = batches, crash_at, 0

    def __next__(self):
        self._taken += 1
        if self._taken == self._crash_at:
            raise KeyboardInterrupt("power failure")
        return self._batches[(self._taken - 1) % len(self._batches)]

    def get_state(self):
        return {"taken": self._taken}

    def set_state(self, state):
        self._taken = state["taken"]

    def close(self):
        pass


ROWS = [
    {split: RNG.normal(size=(16, 6)).astype(np.float32) for split in ("retain", "forget")}
    for _ in range(saliency.BATCHES)
]


def mask_by_hand():
    w = (PARAMS["first"] + 0.1 * PARAMS["second"]).astype(float)
    gradient = sum(x.T @ (x @ w - 1) for x in (rows["forget"].astype(float) for rows in ROWS))
    both = np.abs(np.stack([gradient, 0.1 * gradient]))
    return both >= np.sort(both.ravel())[-12]  # a quarter of 48


@functools.cache
def trainer(objective, layout, config):
    """Return the trainer shared by all runs of an objective on a layout."""
    kind, data, model = LAYOUTS[layout]
    mesh = sharding.make_mesh(jax.devices()[: data * model], sharding.MeshConfig(data, model))
    return Trainer("unlearn", objective, config, seed=3, mesh=mesh, parallel=kind)


def trained_by(objective, folder, batches, params=PARAMS, layout="one device", config=CONFIG):
    return trainer(objective, layout, config).train(TrainRun(params, batches, folder, alpha=0.5))


@pytest.mark.parametrize(("layout", "accumulate"), [("one device", 1), ("4x2", 2), ("pmap", 1)])
def test_only_salient_weights_are_trained(layout, accumulate, tmp_path):
    """Other weights are changed neither by weight decay nor by rounding of the moving average, the result."""
    config = dataclasses.replace(CONFIG, accumulate=accumulate)
    after = trained_by(linear_objective(), tmp_path, Batches(ROWS), layout=layout, config=config)
    mask = dict(zip(("first", "second"), mask_by_hand(), strict=True))
    assert mask["first"].sum() == 12  # V has little effect
    for name in ("first", "second"):
        np.testing.assert_array_equal(after[name] != PARAMS[name], mask[name])
    assert after["unused"] is PARAMS["unused"]


def test_initial_weights_affect_only_salient_weights(tmp_path):
    """The gradient is evaluated at the original weights."""
    objective = dataclasses.replace(
        linear_objective(), start=lambda params, rng: {name: x + 100 for name, x in params.items()}
    )
    after = trained_by(objective, tmp_path, Batches(ROWS))
    for name, mask in zip(("first", "second"), mask_by_hand(), strict=True):
        moved = after[name] - PARAMS[name]
        assert np.all(moved[mask] > 90) and np.all(moved[~mask] == 0)


def test_interrupted_run_resumes_with_its_mask(tmp_path, monkeypatch):
    uninterrupted = trained_by(linear_objective(), tmp_path / "whole", Batches(ROWS))
    with pytest.raises(KeyboardInterrupt):
        trained_by(linear_objective(), tmp_path / "cut", Batches(ROWS, crash_at=6))
    assert [path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()] == ["4"]
    monkeypatch.setattr(loop, "salient_weights", None)  # the mask is not recomputed
    after = trained_by(linear_objective(), tmp_path / "cut", Batches(ROWS))
    jax.tree.map(np.testing.assert_array_equal, after, uninterrupted)
