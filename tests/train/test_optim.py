"""Schedules and AdamW compared with NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2l_jax.train.optim import TrainingConfig, decayed, learning_rate_schedule, make_optimizer


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("cosine", 10, {0: 0, 5: 1.0, 10: 2.0, 35: 1 + np.cos(np.pi / 4), 60: 1.0, 110: 0.0}),
        ("constant", 0, {0: 2.0, 60: 2.0, 109: 2.0}),
        ("constant", 4, {0: 0.0, 2: 1.0, 4: 2.0, 109: 2.0}),
    ],
)
def test_schedules(schedule, warmup, expected):
    rate = learning_rate_schedule(TrainingConfig(110, 1, 2.0, warmup_steps=warmup, schedule=schedule))
    for step, value in expected.items():
        np.testing.assert_allclose(rate(step), value, atol=1e-6, err_msg=str(step))


def test_no_decay_on_biases_norms_and_vectors():
    params = {
        "dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
        "norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
        "head": {"bias": jnp.ones((1, 1, 2))},
        "cls_token": jnp.ones((1, 1, 2)),
    }
    assert decayed(params) == {
        "dense": {"kernel": True, "bias": False},
        "norm": {"scale": False, "bias": False},
        "head": {"bias": False},
        "cls_token": True,
    }


def adamw_by_hand(params, gradients, rates, config):
    moments = {name: np.zeros((2, *value.shape)) for name, value in params.items()}
    for count, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        norm = np.sqrt(sum(np.sum(g**2) for g in gradient.values()))
        scale = min(1, config.clip_norm / norm) if config.clip_norm else 1
        for name, g in gradient.items():
            g = g * scale
            m, v = moments[name]
            m[:] = config.beta1 * m + (1 - config.beta1) * g
            v[:] = config.beta2 * v + (1 - config.beta2) * g**2
            update = m / (1 - config.beta1**count) / (np.sqrt(v / (1 - config.beta2**count)) + 1e-8)
            decay = config.weight_decay if name == "kernel" else 0
            params[name] = params[name] - rate * (update + decay * params[name])
    return params


@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
def test_adamw(clip_norm):
    config = TrainingConfig(20, 1, 0.1, warmup_steps=2, weight_decay=0.3, clip_norm=clip_norm)
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=2)}
    gradients = [{k: rng.normal(size=v.shape) for k, v in params.items()} for _ in range(6)]
    rates = [0, 0.05] + [0.05 * (1 + np.cos(np.pi * k / 18)) for k in range(4)]
    expected = adamw_by_hand(dict(params), gradients, rates, config)
    optimizer = make_optimizer(config)
    ours = {k: v.astype(np.float32) for k, v in params.items()}
    state, update = jax.jit(optimizer.init)(ours), jax.jit(optimizer.update)
    for gradient in gradients:
        gradient = {k: v.astype(np.float32) for k, v in gradient.items()}
        updates, state = update(gradient, state, ours)
        ours = {k: ours[k] + np.asarray(updates[k]) for k in ours}
    for name in params:
        np.testing.assert_allclose(ours[name], expected[name], atol=1e-5)


WRONG = dict(steps=0, learning_rate=-1.0, clip_norm=float("nan"), beta1=1.0, warmup_steps=10, accumulate=3)
WRONG |= dict(ema_decay=1.5, log_every=0)


@pytest.mark.parametrize("name", WRONG)
def test_invalid_settings_are_rejected(name):
    with pytest.raises(ValueError, match=name):
        TrainingConfig(**{**dict(steps=10, batch_size=4, learning_rate=0.1), name: WRONG[name]})


def test_muon_orthogonalizes_updates_of_kernels():
    """All singular directions of the gradient have equal weight; other parameters are updated by Adam."""
    config = TrainingConfig(9, 1, 0.1, "muon", schedule="constant", weight_decay=0.0, clip_norm=0.0)
    rng = np.random.default_rng(0)
    zeros = functools.partial(np.zeros, dtype=np.float32)
    params = {"kernel": zeros((6, 4)), "conv": {"kernel": zeros((1, 2, 3, 4))}, "bias": zeros(4)}
    left, _ = np.linalg.qr(rng.normal(size=(6, 4)))
    right, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    matrix = left @ np.diag([8.0, 4.0, 2.0, 1.0]) @ right.T
    gradient = {"kernel": matrix, "conv": {"kernel": matrix.reshape(1, 2, 3, 4)}, "bias": np.r_[1, -2, 3, -4]}
    gradient = jax.tree.map(lambda x: x.astype(np.float32), gradient)
    optimizer = make_optimizer(config)
    # Without `jit`, which sums the two kernels' products in different orders.
    updates, _ = optimizer.update(gradient, jax.jit(optimizer.init)(params), params)
    rotated = left.T @ np.asarray(updates["kernel"], float) @ right / (-0.1 * 0.2 * np.sqrt(6))
    np.testing.assert_allclose(rotated, np.diag(np.diag(rotated)), atol=0.02)
    assert np.all((np.diag(rotated) > 0.65) & (np.diag(rotated) < 1.25))  # five Newton-Schulz steps
    np.testing.assert_allclose(updates["conv"]["kernel"].reshape(6, 4), updates["kernel"], atol=1e-6)
    nesterov = 1 + 0.9 / 1.9  # Adam's first step with Nesterov momentum (Dozat 2016)
    np.testing.assert_allclose(updates["bias"], -0.1 * nesterov * np.sign(gradient["bias"]), rtol=1e-4)
