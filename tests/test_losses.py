"""The losses as plain functions, against NumPy by hand in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from l2l_jax import (
    feature_distance,
    max_loss,
    noisy_label_loss,
    random_encoder_loss,
    retain_label_loss,
    unlearning_loss,
)

RNG = np.random.default_rng(0)


compiled = jax.jit(unlearning_loss, static_argnames="per_example")


def floats(*shape):
    return RNG.normal(size=shape).astype(np.float32)


# Sets of different sizes, of tokens and of two feature maps.
TOKENS = {"retain": (floats(6, 4, 5), floats(6, 4, 5)), "forget": (floats(9, 4, 5), floats(9, 4, 5))}
MAPS = {
    of: tuple({"a": floats(n, 3), "b": [floats(n, 2, 2, 5)]} for _ in range(2))
    for of, n in (("retain", 6), ("forget", 9))
}
MASKS = {"retain": RNG.random((6, 4)) < 0.5, "forget": RNG.random((9, 4)) < 0.5}
MASKS["retain"][2] = False  # an example of which nothing counts
LOSSES = (floats(6), floats(9))


def arguments(pairs):
    return (*pairs["retain"], *pairs["forget"])


def distances(student, teacher, mask=None):
    """Of every example, in float64; NaN where nothing of it counts."""
    rows = len(jax.tree.leaves(student)[0])
    found = np.zeros(rows)
    for x, y in zip(jax.tree.leaves(student), jax.tree.leaves(teacher), strict=True):
        for row in range(rows):
            square = (x[row].astype(float) - y[row].astype(float)) ** 2
            found[row] += np.mean(square if mask is None else square[mask[row]])
    return found


@pytest.mark.parametrize("pairs", [TOKENS, MAPS], ids=["tokens", "maps"])
def test_unlearning_loss_of_sets_of_different_sizes(pairs):
    retain, forget = distances(*pairs["retain"]), distances(*pairs["forget"])
    loss, terms = compiled(*arguments(pairs), alpha=0.5)
    np.testing.assert_allclose(loss, retain.mean() + 0.5 * forget.mean(), rtol=1e-5)
    np.testing.assert_allclose([terms["retain"], terms["forget"]], [retain.mean(), forget.mean()], rtol=1e-5)
    same, terms = compiled(*arguments(pairs), alpha=0.5, per_example=True)
    np.testing.assert_allclose(same, loss, rtol=1e-6)
    np.testing.assert_allclose(terms["retain"], retain, rtol=1e-5)
    np.testing.assert_allclose(terms["forget"], forget, rtol=1e-5)


def test_gradients_reach_the_student_alone():
    gradient_of = jax.grad(lambda *x: unlearning_loss(*x, alpha=0.5)[0], argnums=(0, 1, 2, 3))
    gradients = jax.device_get(jax.jit(gradient_of)(*arguments(TOKENS)))
    for (student, teacher), gradient, weight in zip(TOKENS.values(), gradients[::2], (1, 0.5), strict=True):
        np.testing.assert_allclose(gradient, weight * 2 * (student - teacher) / student.size, atol=1e-7)
    assert not np.any(gradients[1]) and not np.any(gradients[3])


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
@pytest.mark.filterwarnings("ignore:invalid value")
def test_where_chooses_tokens_and_examples():
    """What is masked counts neither in sums nor in counts, be it infinite, and gets no gradient."""
    broken = {of: (np.where(MASKS[of][..., None], x, np.inf), y) for of, (x, y) in TOKENS.items()}
    expected = [distances(*TOKENS[of], MASKS[of]) for of in TOKENS]

    def loss(student_retain):
        rest = arguments(broken)[1:]
        return unlearning_loss(student_retain, *rest, alpha=0.5, where=tuple(MASKS.values()))

    gradient_of = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (found, terms), gradient = jax.device_get(gradient_of(broken["retain"][0]))
    np.testing.assert_allclose(terms["retain"], np.nanmean(expected[0]), rtol=1e-5)
    np.testing.assert_allclose(terms["forget"], np.nanmean(expected[1]), rtol=1e-5)
    np.testing.assert_allclose(found, np.nanmean(expected[0]) + 0.5 * np.nanmean(expected[1]), rtol=1e-5)
    assert np.all(np.isfinite(gradient)) and np.all((gradient != 0).any(axis=-1) == MASKS["retain"])

    rows = np.arange(9) < 7  # the last two are there to fill the batch
    _, terms = compiled(*arguments(MAPS), alpha=0.5, where=(None, rows))
    np.testing.assert_allclose(terms["forget"], distances(*MAPS["forget"])[:7].mean(), rtol=1e-5)


def test_half_precision_is_measured_in_float32():
    """Of 4,096 ones that differ by 2⁻⁶; summed in bfloat16, the mean would be another."""
    ones = jnp.ones((2, 4096), jnp.bfloat16)
    loss, terms = unlearning_loss(ones, ones + 2**-6, ones, ones - 2**-6, alpha=1.0)
    assert loss.dtype == terms["retain"].dtype == jnp.float32
    assert float(loss) == 2 * 2.0**-12


def test_other_methods():
    retain, forget = (x.astype(float) for x in LOSSES)
    loss, terms = max_loss(*LOSSES, alpha=0.3)
    np.testing.assert_allclose(loss, retain.mean() - 0.3 * forget.mean(), rtol=1e-5)
    np.testing.assert_allclose([terms["retain"], terms["forget"]], [retain.mean(), forget.mean()], rtol=1e-5)
    loss, terms = noisy_label_loss(*LOSSES, alpha=0.3, where=(None, np.arange(9) < 5), per_example=True)
    np.testing.assert_allclose(loss, retain.mean() + 0.3 * forget[:5].mean(), rtol=1e-5)
    np.testing.assert_array_equal(terms["forget"], LOSSES[1])

    (student, teacher), (forgetting, noise) = TOKENS.values()
    loss, terms = random_encoder_loss(student, teacher, forgetting, noise, alpha=0.3)
    np.testing.assert_allclose(terms["forget"], distances(forgetting, noise).mean(), rtol=1e-5)
    loss, terms = retain_label_loss(student, teacher, forgetting, alpha=0.3)
    paired = teacher[[0, 1, 2, 3, 4, 5, 0, 1, 2]]
    expected = distances(student, teacher).mean(), distances(forgetting, paired).mean()
    np.testing.assert_allclose([terms["retain"], terms["forget"]], expected, rtol=1e-5)
    np.testing.assert_allclose(loss, expected[0] + 0.3 * expected[1], rtol=1e-5)


@pytest.mark.parametrize("check_vma", [True, False])
def test_devices_with_different_counts_make_one_mean(check_vma):
    """shard_map with its default checks and without: the mean over all rows that count, and its gradient."""
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(AxisType.Auto,))
    weights, seen, target = floats(3, 5), floats(8, 3), floats(8, 5)
    rows = np.array([1, 1, 0, 0, 1, 0, 1, 1], bool)

    def step(weights, seen, target, rows):
        def loss(weights):
            features = seen @ weights
            pairs = (features, target, features, -target)
            return unlearning_loss(*pairs, alpha=0.5, where=(None, rows), axis_name="batch")

        (value, terms), gradient = jax.value_and_grad(loss, has_aux=True)(weights)
        return value, terms, jax.lax.pmean(gradient, "batch")

    split = (P(), P("batch"), P("batch"), P("batch"))
    mapped = jax.shard_map(step, mesh=mesh, in_specs=split, out_specs=P(), check_vma=check_vma)
    loss, terms, gradient = jax.jit(mapped)(weights, seen, target, rows)
    w, x, y = weights.astype(float), seen.astype(float), target.astype(float)
    retain, forget = np.square(x @ w - y).mean(), np.square(x @ w + y)[rows].mean()
    np.testing.assert_allclose([terms["retain"], terms["forget"]], [retain, forget], rtol=1e-5)
    np.testing.assert_allclose(loss, retain + 0.5 * forget, rtol=1e-5)
    by_hand = x.T @ (x @ w - y) * 2 / y.size + 0.5 * x[rows].T @ (x @ w + y)[rows] * 2 / y[rows].size
    np.testing.assert_allclose(gradient, by_hand, atol=1e-5)


def test_a_tree_of_features_is_summed_over_its_leaves():
    features, target = MAPS["retain"]
    expected = ((features["a"] - target["a"]) ** 2).mean(1)
    expected += ((features["b"][0] - target["b"][0]) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(feature_distance(features, target), expected, rtol=1e-6)


def test_mistakes_are_refused():
    zeros = np.zeros((2, 3), np.float32)
    with pytest.raises(TypeError, match="student_forget has type int32"):
        unlearning_loss(zeros, zeros, zeros.astype(np.int32), zeros)
    with pytest.raises(TypeError, match="retain_losses has type uint8"):
        max_loss(np.zeros(2, np.uint8), np.zeros(2), alpha=1.0)
    with pytest.raises(ValueError, match=r"forget_losses must be one number per example.*\(2, 3\)"):
        noisy_label_loss(np.zeros(2), zeros, alpha=1.0)
    with pytest.raises(ValueError, match=r"shape \(2, 3\), their target \(2, 4\)"):
        unlearning_loss(zeros, zeros, zeros, np.zeros((2, 4)))
    with pytest.raises(ValueError, match="structure"):
        feature_distance([zeros], zeros)
    with pytest.raises(ValueError, match=r"where has shape \(3,\)"):
        feature_distance(zeros, zeros, where=np.ones(3, bool))
    with pytest.raises(TypeError, match="where must be boolean, not float32"):
        feature_distance(zeros, zeros, where=np.ones(2, np.float32))
