"""Losses and noise as plain functions, against NumPy by hand in float64."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from l2l_jax import (
    UnlearningInputs,
    encoder_unlearning_loss,
    feature_distance,
    max_loss,
    noise_features,
    noise_images,
    noisy_label_loss,
    random_encoder_loss,
    retain_label_loss,
    unlearning_inputs,
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


STUDENT = {"w": RNG.normal(size=(12, 5)).astype(np.float32)}
TEACHER = {"w": RNG.normal(size=(12, 5)).astype(np.float32)}
INPUTS = UnlearningInputs(*RNG.normal(size=(3, 16, 4, 12)).astype(np.float32))


def encode(params, seen):
    return jnp.tanh(seen @ params["w"])


def by_hand(student, teacher, inputs, alpha):
    """Loss, terms and gradient in float64."""
    w, v = student["w"].astype(float), teacher["w"].astype(float)
    retain, forget, noise = (np.asarray(x, float) for x in inputs)
    terms, gradient = [], np.zeros_like(w)
    for weight, mine, theirs in ((1.0, retain, retain), (alpha, forget, noise)):
        out = np.tanh(mine @ w)
        error = out - np.tanh(theirs @ v)
        terms.append(np.mean(error**2))
        slope = 2 * error / error.size * (1 - out**2)
        gradient += weight * np.einsum("bti,btj->ij", mine, slope)
    return terms[0] + alpha * terms[1], terms, gradient


@pytest.mark.parametrize("alpha", [0.0, 0.25, 2.0])
def test_loss_terms_and_gradient(alpha):
    def loss_fn(student):
        return encoder_unlearning_loss(encode, student, TEACHER, INPUTS, alpha=alpha)

    (loss, terms), gradient = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(STUDENT)
    expected, expected_terms, expected_gradient = by_hand(STUDENT, TEACHER, INPUTS, alpha)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose([terms["retain"], terms["forget"]], expected_terms, rtol=1e-5)
    np.testing.assert_allclose(gradient["w"], expected_gradient, atol=1e-6)


def test_eight_devices_give_the_numbers_of_one():
    """jit over a sharded batch, shard_map and pmap: loss, terms and gradients of one device."""
    expected, expected_terms, expected_gradient = by_hand(STUDENT, TEACHER, INPUTS, 0.25)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))

    def step(student, inputs, axis_name=None):
        def loss_fn(p):
            return encoder_unlearning_loss(encode, p, TEACHER, UnlearningInputs(*inputs), axis_name=axis_name)

        (loss, terms), gradient = jax.value_and_grad(loss_fn, has_aux=True)(student)
        if axis_name:
            gradient = jax.lax.pmean(gradient, axis_name)
        return loss, terms, gradient

    sharded = jax.device_put(tuple(INPUTS), NamedSharding(mesh, P("batch")))
    mapped = functools.partial(step, axis_name="batch")
    rows = tuple(x.reshape(8, 2, *x.shape[1:]) for x in INPUTS)
    specs = dict(mesh=mesh, in_specs=(P(), P("batch")), out_specs=P())
    shard_mapped = jax.shard_map(mapped, **specs)
    unchecked = jax.shard_map(mapped, **specs, check_vma=False)
    pmapped = jax.pmap(mapped, axis_name="batch", in_axes=(None, 0))(STUDENT, rows)
    for name, (loss, terms, gradient) in {
        "jit": jax.jit(step)(STUDENT, sharded),
        "shard_map": jax.jit(shard_mapped)(STUDENT, sharded),
        "shard_map without its checks": jax.jit(unchecked)(STUDENT, sharded),
        "pmap": jax.tree.map(lambda x: x[3], pmapped),
    }.items():
        np.testing.assert_allclose(loss, expected, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(
            [terms["retain"], terms["forget"]], expected_terms, rtol=1e-5, err_msg=name
        )
        np.testing.assert_allclose(gradient["w"], expected_gradient, atol=1e-6, err_msg=name)


def test_a_sharded_batch_stays_on_its_devices():
    """The compiled program reduces, and never gathers or permutes rows."""
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(INPUTS, NamedSharding(mesh, P("batch")))
    loss = jax.jit(lambda p, x: encoder_unlearning_loss(encode, p, TEACHER, x)[0])
    program = loss.lower(STUDENT, sharded).compile().as_text()
    assert "all-reduce" in program
    for moving in ("all-gather", "all-to-all", "collective-permute"):
        assert moving not in program


def test_inputs_share_the_draw_of_forget_and_noise():
    """T adds its own random numbers: forget and noise must get equal ones, retain others."""
    images = RNG.random((2, 8, 4, 4, 3)).astype(np.float32)

    def corrupt(x, rng):
        return x + 100 * jax.random.uniform(rng, x.shape)

    inputs = unlearning_inputs(corrupt, images[0], images[1], jax.random.key(0), noise="constant")
    drawn = np.asarray(inputs.noise) - images.mean()
    np.testing.assert_allclose(np.asarray(inputs.forget) - images[1], drawn, atol=1e-4)
    assert np.abs(np.asarray(inputs.retain) - images[0] - drawn).max() > 1


def test_wrong_shapes_are_refused():
    images = np.zeros((4, 8, 8, 3), np.float32)
    with pytest.raises(ValueError, match="one shape"):
        unlearning_inputs(lambda x, rng: x, images, images[:2], jax.random.key(0))
    with pytest.raises(ValueError, match="one structure and shape"):
        wrong = UnlearningInputs(INPUTS.retain, INPUTS.forget, INPUTS.noise[:, :2])
        encoder_unlearning_loss(encode, STUDENT, TEACHER, wrong)


def test_importing_the_loss_loads_neither_data_nor_evaluation_packages():
    program = (
        "import sys, l2l_jax; l2l_jax.unlearning_loss\n"
        "heavy = {'grain', 'pydantic', 'sklearn', 'matplotlib', 'orbax', 'flax', 'optax'}\n"
        "print(sorted(heavy & {name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).beta(2, 5, (64, 16, 16, 3)).astype(np.float32)


def test_normal_is_the_standard_draw_scaled_and_clipped(images):
    key = jax.random.key(7)
    gauss = np.asarray(jax.random.normal(key, images.shape))
    expected = np.clip(gauss * images.std(ddof=1) + images.mean(), 0, 1)
    np.testing.assert_allclose(noise_images(images, key, "normal"), expected, atol=1e-5)


def test_uniform_fills_the_range(images):
    noise = np.asarray(noise_images(images, jax.random.key(0), "uniform", value_range=(-1, 1)))
    counts, _ = np.histogram(noise, bins=10, range=(-1, 1))
    # 10 equal bins of 49,152 draws: mean 4,915, standard deviation 67.
    assert abs(counts - 4915.2).max() < 5 * 67 and noise.min() >= -1 and noise.max() < 1


def test_constant_is_the_mean(images):
    noise = np.asarray(noise_images(images, jax.random.key(0), "constant"))
    np.testing.assert_allclose(noise, np.full(images.shape, images.mean()), rtol=1e-5)


@pytest.mark.parametrize("kind", ["normal", "constant"])
def test_statistics_are_global_under_pmap(images, kind):
    """Eight devices see the statistics of all their rows, not of their own."""
    rows = images.reshape(8, 8, 16, 16, 3) * np.arange(1, 9, dtype=np.float32).reshape(8, 1, 1, 1, 1)
    wide = (-1000.0, 1000.0)
    draw = jax.pmap(
        lambda x: noise_images(x, jax.random.key(0), kind, value_range=wide, axis_name="batch"),
        axis_name="batch",
    )
    noise = np.asarray(draw(rows))
    np.testing.assert_allclose(noise.mean(axis=(1, 2, 3, 4)), np.full(8, rows.mean()), rtol=0.05)
    if kind == "normal":
        np.testing.assert_allclose(noise.std(axis=(1, 2, 3, 4)), np.full(8, rows.std()), rtol=0.05)
        assert np.abs(noise[0] - noise[1]).max() > 0.1  # devices draw different rows


@pytest.mark.parametrize("wrong", [dict(kind="gaussian"), dict(value_range=(1, 0))])
def test_unknown_kinds_and_ranges_are_refused(images, wrong):
    with pytest.raises(ValueError):
        noise_images(jnp.asarray(images), jax.random.key(0), **wrong)


@pytest.mark.parametrize("kind", ["normal", "uniform", "constant"])
def test_integer_images_are_refused(kind):
    with pytest.raises(TypeError, match=r"uint8.*value range"):
        noise_images(jnp.zeros((2, 4, 4, 3), jnp.uint8), jax.random.key(0), kind)


def test_statistics_of_half_precision_images_are_float32():
    """Summed in bfloat16, 49,152 pixels would have lost their mean."""
    images = jnp.asarray(np.random.default_rng(0).uniform(0.4, 0.6, (64, 16, 16, 3)), jnp.bfloat16)
    noise = noise_images(images, jax.random.key(0), "normal")
    assert noise.dtype == jnp.bfloat16
    pixels, drawn = np.asarray(images, np.float64), np.asarray(noise, np.float64)
    assert abs(drawn.mean() - pixels.mean()) < 1e-3 and abs(drawn.std() / pixels.std() - 1) < 0.02


def test_noise_features_keep_structure_and_type():
    features = [jnp.full((4, 3), 2.0, jnp.bfloat16), {"map": jnp.arange(8.0).reshape(2, 2, 2)}]
    noise = jax.jit(noise_features)(features, jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), noise) == jax.tree.map(
        lambda x: (x.shape, x.dtype), features
    )
    np.testing.assert_array_equal(noise[0], features[0])  # no deviation, no noise


class Tensor:
    """As far as the losses look at it, an array of another framework."""

    shape, dtype, __module__ = (2, 3), "torch.float32", "torch"

    def __dlpack__(self):
        raise NotImplementedError


def test_arrays_of_other_frameworks_are_refused():
    ones, losses, key = np.ones((2, 3), np.float32), np.ones(2, np.float32), jax.random.key(0)
    calls = {
        "student_retain": lambda x: unlearning_loss(x, ones, ones, ones),
        "teacher_noise": lambda x: unlearning_loss(ones, ones, ones, [x]),
        "retain_losses": lambda x: max_loss(x, losses, alpha=1.0),
        "student_forget": lambda x: retain_label_loss(ones, ones, x, alpha=1.0),
        "target": lambda x: feature_distance(ones, x),
        "where": lambda x: feature_distance(ones, ones, where=x),
        "images": lambda x: noise_images(x, key),
        "retain": lambda x: unlearning_inputs(lambda y, rng: y, x, ones, key),
        "noise": lambda x: encoder_unlearning_loss(encode, {}, {}, UnlearningInputs(ones, ones, x)),
    }
    for name, call in calls.items():
        message = (
            f"^{name} holds a torch.Tensor; expected JAX or NumPy arrays. Convert it with jax.numpy.from_dl"
        )
        with pytest.raises(TypeError, match=message):
            call(Tensor())


@pytest.mark.parametrize("seed", [0, np.int64(3), jnp.int32(1)])
def test_seeds_are_no_keys(seed):
    images = np.ones((2, 4, 4, 3), np.float32)
    for call in (noise_images, noise_features, lambda x, rng: unlearning_inputs(None, x, x, rng)):
        with pytest.raises(TypeError, match=r"expected a JAX key, such as jax.random.key\(0\)"):
            call(images, seed)
    assert noise_images(images, jax.random.PRNGKey(0)).shape == images.shape
