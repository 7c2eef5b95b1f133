"""The paper's objective against NumPy by hand, and on one and eight devices."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from l2l_jax import UnlearningInputs, encoder_unlearning_loss, unlearning_inputs

RNG = np.random.default_rng(0)
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


def test_no_gradient_reaches_the_teacher():
    def loss_fn(teacher):
        return encoder_unlearning_loss(encode, STUDENT, teacher, INPUTS)[0]

    np.testing.assert_array_equal(jax.grad(loss_fn)(TEACHER)["w"], np.zeros((12, 5)))


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
        "import sys, l2l_jax\n"
        "heavy = {'grain', 'sklearn', 'matplotlib', 'tensorflow_datasets', 'orbax', 'flax', 'optax'}\n"
        "print(sorted(heavy & {name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
