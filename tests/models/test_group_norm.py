"""Group normalization compared with float64 sums and with Flax."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2l_jax.models.layers.group_norm import GroupNorm

SHAPES = [(2, 16, 24, 6), (3, 4, 4, 6), (2, 300, 6)]
"""A large image; a small image, which is normalized by Flax; tokens."""


def arrays(shape):
    rng = np.random.default_rng(0)
    x = 3 + 2 * rng.standard_normal(shape, np.float32)
    return x, {name: rng.standard_normal(shape[-1], np.float32) for name in ("scale", "bias")}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("groups", [1, 3, 6])
def test_values(shape, groups):
    """Mean and variance over positions and channels of a group, float64."""
    x, params = arrays(shape)
    grouped = np.float64(x).reshape(len(x), -1, groups, 6 // groups)
    centered = grouped - grouped.mean(axis=(1, 3), keepdims=True)
    normal = centered / np.sqrt(np.square(centered).mean(axis=(1, 3), keepdims=True) + 1e-3)
    expected = normal.reshape(x.shape) * params["scale"] + params["bias"]
    actual = jax.jit(GroupNorm(groups, epsilon=1e-3).apply)({"params": params}, x)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "given"),
    [(None, "float32"), (None, "bfloat16"), ("bfloat16", "float32"), ("float32", "bfloat16")],
)
def test_flax(dtype, given):
    """Parameters, result, dtype and gradients are equal."""
    x = jnp.asarray(arrays(SHAPES[0])[0], given)
    ours, theirs = (c(3, epsilon=1e-5, dtype=dtype and jnp.dtype(dtype)) for c in (GroupNorm, nn.GroupNorm))
    params, same = (jax.jit(module.init)(jax.random.key(0), x) for module in (ours, theirs))
    jax.tree.map(np.testing.assert_array_equal, params, same)
    weights = np.random.default_rng(1).standard_normal(x.shape, np.float32)

    def value_and_grads(module):
        def value(params, x):
            y = module.apply(params, x)
            return jnp.sum(y.astype(jnp.float32) * weights), y

        (_, y), grads = jax.jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True))(params, x)
        return jax.tree.leaves((y, grads))

    for actual, expected in zip(value_and_grads(ours), value_and_grads(theirs), strict=True):
        assert actual.dtype == expected.dtype
        atol = 1e-4 if dtype != "bfloat16" and given == "float32" else 0.05
        np.testing.assert_allclose(np.float32(actual), np.float32(expected), rtol=1e-3, atol=atol)


def test_mask_and_group_size():
    """Cases that only Flax implements are delegated to it."""
    x, params = arrays(SHAPES[0])
    mask = np.random.default_rng(1).random(x.shape) < 0.5
    for groups, call in ((dict(num_groups=3), dict(mask=mask)), (dict(num_groups=None, group_size=2), {})):
        both = [cls(**groups).apply({"params": params}, x, **call) for cls in (GroupNorm, nn.GroupNorm)]
        np.testing.assert_array_equal(*both)


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("shape", [(2, 32, 16, 6), (2, 18, 18, 6), (2, 4, 4, 6)])
def test_film_and_activation(shape, on_gpu, monkeypatch):
    """Result and gradients match Flax's normalization followed by a modulation and SiLU."""
    if on_gpu:  # the same sums in the order for NVIDIA's compiler
        choose = lambda *given, cuda, default: cuda(*given)  # noqa: E731
        monkeypatch.setattr("l2l_jax.models.layers.group_norm.lax.platform_dependent", choose)
    x, params = arrays(shape)
    rng = np.random.default_rng(1)
    film = tuple(rng.standard_normal((len(x), shape[-1]), np.float32) for _ in range(2))
    weights = rng.standard_normal(shape, np.float32)

    def ours(x, params, film):
        norm = GroupNorm(3, epsilon=1e-5, activation=nn.silu)
        return norm.apply({"params": params}, x, film=film)

    def theirs(x, params, film):
        scale, shift = (each[:, None, None] for each in film)
        return nn.silu(nn.GroupNorm(3, epsilon=1e-5).apply({"params": params}, x) * (1 + scale) + shift)

    def both(function):
        y, transpose = jax.vjp(function, x, params, film)
        return jax.tree.leaves((y, transpose(weights)))

    for actual, expected in zip(*(jax.jit(both, static_argnums=0)(f) for f in (ours, theirs)), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)
