"""Adapters by hand: which weights they have, what they add, and that any method trains them alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2l_jax.methods.adapters import ADAPTER, adapted, merged, new_adapter
from l2l_jax.methods.base import total_loss
from l2l_jax.methods.registry import make_task
from tests.matrix import cells
from tests.train.families import MODELS, images_of, params_of

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
    """An adapter with random numbers in place of those that it has."""
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


def test_the_factor_has_variance_one_over_rank():
    down = new_adapter({"kernel": np.zeros((600, 600))}, "lora", 16, jax.random.key(0))["kernel"]["down"]
    np.testing.assert_allclose(np.std(down), 1 / 4, rtol=5 / np.sqrt(2 * 9600))


def test_norms_by_hand():
    adapter = new_adapter(WEIGHTS, "norms", 2, jax.random.key(0))
    assert jax.tree.map(jnp.shape, adapter) == {
        "encoder": {"norm": {"scale": {"delta": (8,)}, "bias": {"delta": (8,)}}}
    }
    change = filled(adapter)
    result = merged(WEIGHTS, change)["encoder"]
    for name in ("scale", "bias"):
        expected = WEIGHTS["encoder"]["norm"][name] + change["encoder"]["norm"][name]["delta"]
        np.testing.assert_allclose(result["norm"][name], expected, rtol=1e-6)
    np.testing.assert_array_equal(result["dense"]["bias"], WEIGHTS["encoder"]["dense"]["bias"])


def test_a_model_without_a_place_for_it_is_refused():
    with pytest.raises(ValueError, match="no weight of the model takes an adapter 'lora' of rank 9"):
        new_adapter(WEIGHTS, "lora", 9, jax.random.key(0))
    with pytest.raises(ValueError, match="starts from others"):
        make_task("undo", MODELS["mae"], adapter="norms")
    with pytest.raises(ValueError, match="saliency must be 1"):
        make_task("encoder", MODELS["mae"], adapter="lora", saliency=0.5)


def count(tree):
    return sum(np.size(x) for x in jax.tree.leaves(tree))


def test_how_many_numbers_are_trained():
    """MAE with 1 block of width 32 in encoder and decoder, patches of 4·4·3 = 48 numbers, rank 2.

    In a block: qkv 2·(32 + 96), proj 2·(32 + 32), fc1 and fc2 2·(32 + 128) each; the encoder embeds patches
    with 2·(48 + 32); the decoder has 2·(32 + 32) to come in and 2·(32 + 48) to go out. Norms: three in the
    encoder and three in the decoder, with 32 scales and 32 biases each.
    """
    block = 2 * (32 + 96) + 2 * (32 + 32) + 4 * (32 + 128)
    encoder = block + 2 * (48 + 32)
    both = encoder + block + 2 * (32 + 32) + 2 * (32 + 48)
    expected = {("encoder", "lora"): encoder, ("whole", "lora"): both}
    expected |= {("encoder", "norms"): 3 * 64, ("whole", "norms"): 6 * 64}
    params = params_of(MODELS["mae"])
    for (method, kind), numbers in expected.items():
        task = make_task(method, MODELS["mae"], adapter=kind, adapter_rank=2)
        assert task.trained == (ADAPTER,)
        assert count(task.start(params, jax.random.key(0))[ADAPTER]) == numbers


CELLS = cells(
    ("relearn_aware", "encoder", "whole"),
    MODELS,
    normal=[("relearn_aware", "mae"), ("whole", "mage"), ("encoder", "palette")],
)
"""A rule of gradients of its own, features and outputs together, and the paper's method; each family once, as
an adapter asks of a method only that it takes weights, and of a family only its kernels."""


@pytest.mark.slow
@pytest.mark.parametrize(("method", "family"), CELLS)
def test_losses_and_gradients_of_every_family(method, family):
    """At first those of the original model; later those of the merged one, by the chain rule."""
    model = MODELS[family]
    params, (batch,) = params_of(model), images_of(family, 1, 4)
    plain = make_task(method, model, target="blur")
    task = make_task(method, model, target="blur", adapter="lora", adapter_rank=2)
    fresh = jax.jit(lambda key: task.start(params, key)[ADAPTER])
    start = {ADAPTER: jax.device_get(fresh(jax.random.key(3)))}
    moved = {ADAPTER: jax.tree.map(lambda x: x + np.float32(0.01), start[ADAPTER])}

    def run(task, trained):
        frozen = {part: params[part] for part in task.frozen}
        inputs = task.prepare(frozen, batch, jax.random.key(0))
        rule, alpha = task.gradients, jnp.float32(0.5)
        terms, gradients = rule.compute(task, trained, frozen, inputs, alpha, lambda x: x)
        loss, _ = total_loss(task, trained, frozen, inputs, alpha)
        return (loss, terms["loss"]), rule.combine(terms, gradients, alpha)

    whole = {part: params[part] for part in plain.trained}
    of_weights, of_adapter = (jax.jit(functools.partial(run, x)) for x in (plain, task))
    same = jax.jit(adapted)(params, start[ADAPTER])
    jax.tree.map(np.testing.assert_array_equal, same, params)  # to the bit
    np.testing.assert_allclose(of_adapter(start)[0], of_weights(whole)[0], rtol=1e-6)
    after = merged(params, moved[ADAPTER])
    losses, gradient = jax.device_get(of_adapter(moved))
    merged_losses, on_weights = jax.device_get(of_weights({part: after[part] for part in plain.trained}))
    np.testing.assert_allclose(losses, merged_losses, rtol=1e-4)
    checked = 0
    for path, factors in jax.tree_util.tree_leaves_with_path(moved[ADAPTER], is_leaf=lambda x: "down" in x):
        slope, found = on_weights, gradient[ADAPTER]
        for key in path:
            slope, found = slope[key.key], found[key.key]
        slope = np.reshape(np.asarray(slope), (-1, slope.shape[-1])).astype(float)
        for name, expected in (("down", slope @ factors["up"].T), ("up", factors["down"].T @ slope)):
            np.testing.assert_allclose(found[name], expected, atol=1e-2 * np.abs(expected).max() + 1e-6)
        checked += 1
    assert checked >= 4  # the dense kernels of one block


def test_a_run_is_measured_with_the_weights_that_it_will_leave():
    """A retain budget restores images with the adapter added on the devices."""
    model, params = MODELS["mae"], params_of(MODELS["mae"])
    task = make_task("encoder", model, adapter="lora", adapter_rank=2)
    trained = filled(task.initial(params, jax.random.key(0)))
    composed, left = task.compose(params, trained), task.merge(params, trained)
    assert set(composed) == set(params)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), composed, {p: left[p] for p in params}
    )
    pairs = zip(jax.tree.leaves(composed["encoder"]), jax.tree.leaves(params["encoder"]), strict=True)
    assert any(np.abs(after - before).max() > 0.1 for after, before in pairs)
