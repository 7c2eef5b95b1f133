"""Losses and noise as pure functions, compared with NumPy in float64."""

import functools

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
close = functools.partial(np.testing.assert_allclose, rtol=1e-5)


def floats(*shape):
    return RNG.normal(size=shape).astype(np.float32)


# Sets of different sizes, as tokens and as two feature maps
TOKENS = {"retain": (floats(6, 4, 5), floats(6, 4, 5)), "forget": (floats(9, 4, 5), floats(9, 4, 5))}
MAPS = {
    split: tuple({"a": floats(n, 3), "b": [floats(n, 2, 2, 5)]} for _ in range(2))
    for split, n in (("retain", 6), ("forget", 9))
}
MASKS = {"retain": RNG.random((6, 4)) < 0.5, "forget": RNG.random((9, 4)) < 0.5}
MASKS["retain"][2] = False  # an example that is fully masked
LOSSES = (floats(6), floats(9))


def arguments(pairs):
    return (*pairs["retain"], *pairs["forget"])


def both(terms):
    return [terms["retain"], terms["forget"]]


def distances(student, teacher, mask=None):
    """Return per-example distances in float64; NaN for fully masked examples."""
    rows = len(jax.tree.leaves(student)[0])
    result = np.zeros(rows)
    for x, y in zip(jax.tree.leaves(student), jax.tree.leaves(teacher), strict=True):
        for row in range(rows):
            square = (x[row].astype(float) - y[row].astype(float)) ** 2
            result[row] += np.mean(square if mask is None else square[mask[row]])
    return result


@pytest.mark.parametrize("pairs", [TOKENS, MAPS], ids=["tokens", "maps"])
def test_unlearning_loss_with_sets_of_different_sizes(pairs):
    retain, forget = distances(*pairs["retain"]), distances(*pairs["forget"])
    loss, terms = compiled(*arguments(pairs), alpha=0.5)
    close(loss, retain.mean() + 0.5 * forget.mean())
    close(both(terms), [retain.mean(), forget.mean()])
    same, terms = compiled(*arguments(pairs), alpha=0.5, per_example=True)
    close(same, loss)
    close(terms["retain"], retain)
    close(terms["forget"], forget)


def test_only_the_student_has_gradients():
    gradient_of = jax.grad(lambda *x: unlearning_loss(*x, alpha=0.5)[0], argnums=(0, 1, 2, 3))
    gradients = jax.device_get(jax.jit(gradient_of)(*arguments(TOKENS)))
    for (student, teacher), gradient, weight in zip(TOKENS.values(), gradients[::2], (1, 0.5), strict=True):
        close(gradient, weight * 2 * (student - teacher) / student.size, atol=1e-7)
    assert not np.any(gradients[1]) and not np.any(gradients[3])


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
@pytest.mark.filterwarnings("ignore:invalid value")
def test_where_selects_tokens_and_examples():
    """Masked values, even infinite ones, are excluded from sums and counts, and have no gradient."""
    broken = {split: (np.where(MASKS[split][..., None], x, np.inf), y) for split, (x, y) in TOKENS.items()}
    expected = [np.nanmean(distances(*TOKENS[split], MASKS[split])) for split in TOKENS]

    def loss(student_retain):
        rest = arguments(broken)[1:]
        return unlearning_loss(student_retain, *rest, alpha=0.5, where=tuple(MASKS.values()))

    gradient_of = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (actual, terms), gradient = jax.device_get(gradient_of(broken["retain"][0]))
    close(both(terms), expected)
    close(actual, expected[0] + 0.5 * expected[1])
    assert np.all(np.isfinite(gradient)) and np.all((gradient != 0).any(axis=-1) == MASKS["retain"])

    rows = np.arange(9) < 7  # the last two only pad the batch
    _, terms = compiled(*arguments(MAPS), alpha=0.5, where=(None, rows))
    close(terms["forget"], distances(*MAPS["forget"])[:7].mean())


def test_half_precision_losses_are_float32():
    """4,096 elements differ by 2⁻⁶; a sum in bfloat16 would give a different mean."""
    ones = jnp.ones((2, 4096), jnp.bfloat16)
    loss, terms = unlearning_loss(ones, ones + 2**-6, ones, ones - 2**-6, alpha=1.0)
    assert loss.dtype == terms["retain"].dtype == jnp.float32
    assert float(loss) == 2 * 2.0**-12


def test_other_methods():
    retain, forget = (x.astype(float) for x in LOSSES)
    loss, terms = max_loss(*LOSSES, alpha=0.3)
    close(loss, retain.mean() - 0.3 * forget.mean())
    close(both(terms), [retain.mean(), forget.mean()])
    loss, terms = noisy_label_loss(*LOSSES, alpha=0.3, where=(None, np.arange(9) < 5), per_example=True)
    close(loss, retain.mean() + 0.3 * forget[:5].mean())
    np.testing.assert_array_equal(terms["forget"], LOSSES[1])

    (student, teacher), (forgetting, noise) = TOKENS.values()
    _, terms = random_encoder_loss(student, teacher, forgetting, noise, alpha=0.3)
    close(terms["forget"], distances(forgetting, noise).mean())
    loss, terms = retain_label_loss(student, teacher, forgetting, alpha=0.3)
    paired = teacher[[0, 1, 2, 3, 4, 5, 0, 1, 2]]
    expected = distances(student, teacher).mean(), distances(forgetting, paired).mean()
    close(both(terms), expected)
    close(loss, expected[0] + 0.3 * expected[1])


@pytest.mark.parametrize("check_vma", [True, False])
def test_mean_over_devices_with_different_counts(check_vma):
    """shard_map with and without its default checks: the mean over all unmasked rows, and its gradient."""
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(AxisType.Auto,))
    weights, inputs, target = floats(3, 5), floats(8, 3), floats(8, 5)
    rows = np.array([1, 1, 0, 0, 1, 0, 1, 1], bool)

    def step(weights, inputs, target, rows):
        def loss(weights):
            features = inputs @ weights
            pairs = (features, target, features, -target)
            return unlearning_loss(*pairs, alpha=0.5, where=(None, rows), axis_name="batch")

        (value, terms), gradient = jax.value_and_grad(loss, has_aux=True)(weights)
        return value, terms, jax.lax.pmean(gradient, "batch")

    split = (P(), P("batch"), P("batch"), P("batch"))
    mapped = jax.shard_map(step, mesh=mesh, in_specs=split, out_specs=P(), check_vma=check_vma)
    loss, terms, gradient = jax.jit(mapped)(weights, inputs, target, rows)
    w, x, y = weights.astype(float), inputs.astype(float), target.astype(float)
    retain, forget = np.square(x @ w - y).mean(), np.square(x @ w + y)[rows].mean()
    close(both(terms), [retain, forget])
    close(loss, retain + 0.5 * forget)
    by_hand = x.T @ (x @ w - y) * 2 / y.size + 0.5 * x[rows].T @ (x @ w + y)[rows] * 2 / y[rows].size
    close(gradient, by_hand, atol=1e-5)


STUDENT, TEACHER = {"w": floats(12, 5)}, {"w": floats(12, 5)}
INPUTS = UnlearningInputs(*floats(3, 16, 4, 12))


def encode(params, seen):
    return jnp.tanh(seen @ params["w"])


def check(found, alpha):
    """Compare loss, terms and gradient with sums in float64."""
    loss, terms, gradient = found
    w, v = STUDENT["w"].astype(float), TEACHER["w"].astype(float)
    retain, forget, noise = (np.asarray(x, float) for x in INPUTS)
    expected, slopes = [], np.zeros_like(w)
    for weight, mine, theirs in ((1.0, retain, retain), (alpha, forget, noise)):
        out = np.tanh(mine @ w)
        error = out - np.tanh(theirs @ v)
        expected.append(np.mean(error**2))
        slopes += weight * np.einsum("bti,btj->ij", mine, 2 * error / error.size * (1 - out**2))
    close(loss, expected[0] + alpha * expected[1])
    close(both(terms), expected)
    np.testing.assert_allclose(gradient["w"], slopes, atol=1e-6)


def step(student, inputs, alpha=0.25, axis_name=None):
    def loss_fn(p):
        inputs_of = UnlearningInputs(*inputs)
        return encoder_unlearning_loss(encode, p, TEACHER, inputs_of, alpha=alpha, axis_name=axis_name)

    (loss, terms), gradient = jax.value_and_grad(loss_fn, has_aux=True)(student)
    return loss, terms, jax.lax.pmean(gradient, axis_name) if axis_name else gradient


@pytest.mark.parametrize("alpha", [0.0, 0.25, 2.0])
def test_loss_terms_and_gradient(alpha):
    check(jax.jit(step)(STUDENT, INPUTS, alpha), alpha)


def test_eight_devices_match_one_device():
    """jit over a sharded batch, shard_map and pmap; the program of jit reduces but never moves rows."""
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(tuple(INPUTS), NamedSharding(mesh, P("batch")))
    program = jax.jit(step).lower(STUDENT, sharded).compile()
    check(program(STUDENT, sharded), 0.25)
    assert "all-reduce" in program.as_text()
    for moving in ("all-gather", "all-to-all", "collective-permute"):
        assert moving not in program.as_text()
    mapped = functools.partial(step, axis_name="batch")
    specs = dict(mesh=mesh, in_specs=(P(), P("batch")), out_specs=P())
    for checks in (True, False):
        check(jax.jit(jax.shard_map(mapped, **specs, check_vma=checks))(STUDENT, sharded), 0.25)
    rows = tuple(x.reshape(8, 2, *x.shape[1:]) for x in INPUTS)
    pmapped = jax.pmap(mapped, axis_name="batch", in_axes=(None, 0))(STUDENT, rows)
    check(jax.tree.map(lambda x: x[3], pmapped), 0.25)


def test_forget_and_noise_inputs_share_random_numbers():
    """T adds random numbers: those of forget and noise images must be equal, those of retain images not."""
    images = RNG.random((2, 8, 4, 4, 3)).astype(np.float32)

    def corrupt(x, rng):
        return x + 100 * jax.random.uniform(rng, x.shape)

    inputs = unlearning_inputs(corrupt, images[0], images[1], jax.random.key(0), noise="constant")
    drawn = np.asarray(inputs.noise) - images.mean()
    np.testing.assert_allclose(np.asarray(inputs.forget) - images[1], drawn, atol=1e-4)
    assert np.abs(np.asarray(inputs.retain) - images[0] - drawn).max() > 1


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).beta(2, 5, (64, 16, 16, 3)).astype(np.float32)


def test_kinds_of_noise(images):
    """Normal: scaled and clipped standard normal; uniform: the full range; constant: the mean."""
    key = jax.random.key(7)
    gauss = np.asarray(jax.random.normal(key, images.shape))
    expected = np.clip(gauss * images.std(ddof=1) + images.mean(), 0, 1)
    np.testing.assert_allclose(noise_images(images, key, "normal"), expected, atol=1e-5)
    close(noise_images(images, key, "constant"), np.full(images.shape, images.mean()))
    noise = np.asarray(noise_images(images, key, "uniform", value_range=(-1, 1)))
    counts, _ = np.histogram(noise, bins=10, range=(-1, 1))
    # 10 equal bins of 49,152 draws: mean 4,915, standard deviation 67.
    assert abs(counts - 4915.2).max() < 5 * 67 and noise.min() >= -1 and noise.max() < 1


@pytest.mark.parametrize("kind", ["normal", "constant"])
def test_statistics_are_global_under_pmap(images, kind):
    """Eight devices use the statistics of all rows, not only of their own."""
    rows = images.reshape(8, 8, 16, 16, 3) * np.arange(1, 9, dtype=np.float32).reshape(8, 1, 1, 1, 1)
    options = dict(value_range=(-1000.0, 1000.0), axis_name="batch")
    draw = jax.pmap(lambda x: noise_images(x, jax.random.key(0), kind, **options), axis_name="batch")
    noise = np.asarray(draw(rows))
    close(noise.mean(axis=(1, 2, 3, 4)), np.full(8, rows.mean()), rtol=0.05)
    if kind == "normal":
        close(noise.std(axis=(1, 2, 3, 4)), np.full(8, rows.std()), rtol=0.05)
        assert np.abs(noise[0] - noise[1]).max() > 0.1  # devices draw different rows


def test_statistics_of_half_precision_images_are_float32():
    """A sum over 49,152 pixels in bfloat16 would be inaccurate."""
    images = jnp.asarray(np.random.default_rng(0).uniform(0.4, 0.6, (64, 16, 16, 3)), jnp.bfloat16)
    noise = noise_images(images, jax.random.key(0), "normal")
    assert noise.dtype == jnp.bfloat16
    pixels, drawn = np.asarray(images, np.float64), np.asarray(noise, np.float64)
    assert abs(drawn.mean() - pixels.mean()) < 1e-3 and abs(drawn.std() / pixels.std() - 1) < 0.02


def test_noise_features_keep_structure_and_dtype():
    features = [jnp.full((4, 3), 2.0, jnp.bfloat16), {"map": jnp.arange(8.0).reshape(2, 2, 2)}]
    noise = jax.jit(noise_features)(features, jax.random.key(0))
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (noise, features)]
    assert shapes[0] == shapes[1]
    np.testing.assert_array_equal(noise[0], features[0])  # zero deviation gives zero noise


class Tensor:
    """An array of another framework, with the protocol that the losses use."""

    shape, dtype, __module__ = (2, 3), "torch.float32", "torch"

    def __dlpack__(self):
        raise NotImplementedError


ZEROS, KEY = np.zeros((2, 3), np.float32), jax.random.key(0)
PIXELS = np.zeros((4, 8, 8, 3), np.float32)
FOREIGN = "{} holds a torch.Tensor; expected JAX or NumPy arrays. Convert it with jax.numpy.from_dlpack"
encoder_loss = functools.partial(encoder_unlearning_loss, encode, {}, {})
MISTAKES = [
    (lambda: unlearning_loss(ZEROS, ZEROS, ZEROS.astype(int), ZEROS), "student_forget has type int"),
    (lambda: max_loss(np.zeros(2, np.uint8), np.zeros(2), alpha=1.0), "retain_losses has type uint8"),
    (lambda: noisy_label_loss(np.zeros(2), ZEROS, alpha=1.0), r"forget_losses .*, \[batch\], .*2, 3"),
    (lambda: unlearning_loss(ZEROS, ZEROS, ZEROS, np.zeros((2, 4))), r"\(2, 3\), their target \(2, 4\)"),
    (lambda: feature_distance([ZEROS], ZEROS), "structure"),
    (lambda: feature_distance(ZEROS, ZEROS, where=np.ones(3, bool)), r"where has shape \(3,\)"),
    (lambda: feature_distance(ZEROS, ZEROS, where=np.ones(2)), "where must be boolean, not float64"),
    (lambda: unlearning_inputs(None, PIXELS, PIXELS[:2], KEY), "the same shape"),
    (lambda: encoder_loss(INPUTS._replace(noise=INPUTS.noise[:, :2])), "equal in structure and shape"),
    (lambda: noise_images(PIXELS, KEY, "gaussian"), "kind must be one of normal, uniform, constant"),
    (lambda: noise_images(PIXELS, KEY, value_range=(1, 0)), "value_range must increase"),
    (lambda: noise_images(PIXELS.astype(np.uint8), KEY), "uint8.*value range"),
    (lambda: unlearning_loss(Tensor(), ZEROS, ZEROS, ZEROS), FOREIGN.format("student_retain")),
    (lambda: unlearning_loss(ZEROS, ZEROS, ZEROS, [Tensor()]), FOREIGN.format("teacher_noise")),
    (lambda: max_loss(Tensor(), np.ones(2), alpha=1.0), FOREIGN.format("retain_losses")),
    (lambda: retain_label_loss(ZEROS, ZEROS, Tensor(), alpha=1.0), FOREIGN.format("student_forget")),
    (lambda: feature_distance(ZEROS, Tensor()), FOREIGN.format("target")),
    (lambda: feature_distance(ZEROS, ZEROS, where=Tensor()), FOREIGN.format("where")),
    (lambda: noise_images(Tensor(), KEY), FOREIGN.format("images")),
    (lambda: unlearning_inputs(None, Tensor(), ZEROS, KEY), FOREIGN.format("retain")),
    (lambda: encoder_loss(INPUTS._replace(noise=Tensor())), FOREIGN.format("noise")),
]


@pytest.mark.parametrize("call, message", MISTAKES)
def test_invalid_inputs_raise_errors(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


@pytest.mark.parametrize("seed", [0, np.int64(3), jnp.int32(1)])
def test_integer_seeds_are_rejected_as_keys(seed):
    for call in (noise_images, noise_features, lambda x, rng: unlearning_inputs(None, x, x, rng)):
        with pytest.raises(TypeError, match=r"expected a JAX key, such as jax.random.key\(0\)"):
            call(PIXELS, seed)
    assert noise_images(PIXELS, jax.random.PRNGKey(0)).shape == PIXELS.shape
