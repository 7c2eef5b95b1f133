"""Weights and effect of adapters, by hand."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2l_jax.models.adapters import adapted, merged, new_adapter, takes_lora

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


WEIGHTS = {
    "encoder": {
        "dense": {"kernel": normal(6, 8), "bias": normal(8)},
        "conv": {"kernel": normal(3, 3, 4, 5), "bias": normal(5)},
        "stacked": {"kernel": normal(2, 7, 9)},
        "narrow": {"kernel": normal(6, 2)},
        "norm": {"scale": normal(8), "bias": normal(8)},
        "token": normal(1, 8),
    }
}


def filled(adapter):
    return jax.tree.map(lambda x: normal(*x.shape), adapter)


def test_low_rank_factors_by_hand():
    """Rank 2: 6·8 > 2·(6+8), 36·5 > 2·(36+5), 7·9 > 2·(7+9); but 6·2 < 2·(6+2)."""
    adapter = new_adapter(WEIGHTS, "lora", 2, jax.random.key(0))["encoder"]
    shapes = {name: jax.tree.map(jnp.shape, module["kernel"]) for name, module in adapter.items()}
    assert shapes == {
        "dense": {"down": (6, 2), "up": (2, 8)},
        "conv": {"down": (36, 2), "up": (2, 5)},
        "stacked": {"down": (2, 7, 2), "up": (2, 2, 9)},
    }
    assert not any(np.any(module["kernel"]["up"]) for module in adapter.values())
    factors = filled({"encoder": adapter})
    expected = {name: dict(module) for name, module in WEIGHTS["encoder"].items() if name != "token"}
    wide = jax.tree.map(lambda x: x.astype(float), factors["encoder"])
    dense, conv, stacked = (wide[name]["kernel"] for name in ("dense", "conv", "stacked"))
    expected["dense"]["kernel"] = expected["dense"]["kernel"] + dense["down"] @ dense["up"]
    product = np.einsum("xycr,ro->xyco", conv["down"].reshape(3, 3, 4, 2), conv["up"])
    expected["conv"]["kernel"] = expected["conv"]["kernel"] + product
    products = [stacked["down"][layer] @ stacked["up"][layer] for layer in range(2)]
    expected["stacked"]["kernel"] = expected["stacked"]["kernel"] + np.stack(products)
    expected["token"] = WEIGHTS["encoder"]["token"]
    for result in (merged(WEIGHTS, factors), jax.jit(adapted)(WEIGHTS, factors)):
        close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)  # noqa: E731
        jax.tree.map(close, result["encoder"], expected)
    same = merged(WEIGHTS, factors)["encoder"]
    assert same["token"] is WEIGHTS["encoder"]["token"] and same["dense"]["kernel"].dtype == np.float32


def test_layers_by_name_and_shape():
    chosen = {"attention": {"dense"}, "attention+convolution": {"dense", "conv"}}
    for layers, names in (chosen | {"all": {"dense", "conv", "stacked"}}).items():
        takes = takes_lora(SimpleNamespace(attention_layers=("dense",)), layers)
        adapter = new_adapter(WEIGHTS, "lora", 2, jax.random.key(0), takes)["encoder"]
        assert set(adapter) == names


def test_factor_has_variance_one_over_rank():
    down = new_adapter({"kernel": np.zeros((600, 600))}, "lora", 16, jax.random.key(0))["kernel"]["down"]
    np.testing.assert_allclose(np.std(down), 1 / 4, rtol=5 / np.sqrt(2 * 9600))


def test_norms_by_hand():
    adapter = new_adapter(WEIGHTS, "norms", 2, jax.random.key(0))
    norm = {"scale": {"delta": (8,)}, "bias": {"delta": (8,)}}
    assert jax.tree.map(jnp.shape, adapter) == {"encoder": {"norm": norm}}
    change = filled(adapter)
    result = merged(WEIGHTS, change)["encoder"]
    for name in ("scale", "bias"):
        expected = WEIGHTS["encoder"]["norm"][name] + change["encoder"]["norm"][name]["delta"]
        np.testing.assert_allclose(result["norm"][name], expected, rtol=1e-6)
    np.testing.assert_array_equal(result["dense"]["bias"], WEIGHTS["encoder"]["dense"]["bias"])


def test_model_without_adaptable_weights_is_rejected():
    with pytest.raises(ValueError, match="no weight of the model can be adapted by 'lora' of rank 9"):
        new_adapter(WEIGHTS, "lora", 9, jax.random.key(0))
