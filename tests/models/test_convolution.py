"""Convolutions compared with Flax, and their weight gradient compared with explicit sums."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from l2l_jax.models.layers import convolution
from l2l_jax.models.layers.convolution import Conv, kernel_gradient
from l2l_jax.train import sharding
from tests.matrix import cells


def compiled_gradient(x, gradient, size):
    """Compile `kernel_gradient`, which reads module constants that tests change."""
    return jax.jit(lambda *arrays: kernel_gradient(*arrays, size))(x, gradient)


def by_hand(x, gradient, size):
    """Sum shifted input times the output's gradient over images and positions, float64."""
    rows, columns = size
    height, width = x.shape[1:3]
    padded = np.pad(np.float64(x), [(0, 0), (rows // 2,) * 2, (columns // 2,) * 2, (0, 0)])
    sums = [
        np.tensordot(padded[:, i : i + height, j : j + width], np.float64(gradient), axes=[(0, 1, 2)] * 2)
        for i in range(rows)
        for j in range(columns)
    ]
    return np.reshape(sums, (rows, columns, x.shape[-1], gradient.shape[-1]))


def arrays(batch, height, width, channels, outputs, dtype=np.float32):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, height, width, channels)).astype(dtype)
    return x, rng.standard_normal((batch, height, width, outputs)).astype(dtype)


@pytest.mark.parametrize("size", [(3, 3), (1, 1), (5, 3)])
@pytest.mark.parametrize(("channels", "outputs"), [(2, 5), (4, 4), (6, 3)])
def test_weight_gradient(size, channels, outputs):
    x, gradient = arrays(3, 6, 7, channels, outputs)
    result = compiled_gradient(x, gradient, size)
    np.testing.assert_allclose(result, by_hand(x, gradient, size), rtol=1e-5, atol=1e-5)


def in_strips(monkeypatch, places, lines):
    for name, value in dict(STRIPS_FROM=1, NARROW=1, STRIP_PLACES=places, STRIP_LINES=lines).items():
        monkeypatch.setattr(convolution, name, value)


@pytest.mark.parametrize(("places", "lines"), [(1, 1), (8, 2), (32, 2), (64, 2), (10_000, 2)])
def test_strips(monkeypatch, places, lines):
    """One line of an image; two lines; one, two, or all four complete images."""
    x, gradient = arrays(4, 8, 4, 3, 5)
    in_strips(monkeypatch, places, lines)
    result = compiled_gradient(x, gradient, (3, 3))
    np.testing.assert_allclose(result, by_hand(x, gradient, (3, 3)), rtol=1e-5, atol=1e-5)


def test_gradient_is_reduced_over_devices_once():
    """For a batch that is split over eight devices, the loop over strips has no all-reduce."""
    rows = jax.NamedSharding(sharding.make_mesh(jax.devices()), sharding.ROWS)
    x, gradient = (jax.ShapeDtypeStruct((16, 64, 64, n), np.float32, sharding=rows) for n in (12, 16))
    program = jax.jit(lambda *arrays: kernel_gradient(*arrays, (3, 3))).lower(x, gradient).compile()
    operations = program.runtime_executable().hlo_modules()[0].to_string()
    entry = operations[operations.index("\nENTRY") :]
    assert " while(" in entry
    assert operations.count(" all-reduce(") == entry.count(" all-reduce(") == 1


def test_bfloat16_sums_in_float32():
    x, gradient = arrays(2, 16, 16, 3, 4, jnp.bfloat16)
    result = compiled_gradient(x, gradient, (3, 3))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, by_hand(x, gradient, (3, 3)), rtol=1e-5, atol=1e-4)


CONVOLUTIONS = {
    "3x3": dict(kernel_size=(3, 3)),
    "1x1 without bias": dict(kernel_size=(1, 1), use_bias=False),
    "strided": dict(kernel_size=(3, 3), strides=2),
    "even": dict(kernel_size=(2, 2)),
    "valid": dict(kernel_size=(3, 3), padding="VALID"),
    "dilated": dict(kernel_size=(3, 3), kernel_dilation=2),
    "grouped": dict(kernel_size=(3, 3), feature_group_count=2),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_matches_flax(name):
    x, _ = arrays(2, 16, 16, 4, 6)
    ours, flax = Conv(6, **CONVOLUTIONS[name]), nn.Conv(6, **CONVOLUTIONS[name])
    shapes = jax.eval_shape(flax.init, jax.random.key(0), x)
    assert jax.eval_shape(ours.init, jax.random.key(0), x) == shapes
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda like: 0.2 * rng.standard_normal(like.shape, np.float32), shapes)

    def loss(module):
        return jax.jit(jax.value_and_grad(lambda v, y: jnp.sin(module.apply(v, y)).sum(), argnums=(0, 1)))

    actual, expected = (jax.tree.leaves(loss(module)(variables, x)) for module in (ours, flax))
    for leaf, expected_leaf in zip(actual, expected, strict=True):
        np.testing.assert_allclose(leaf, expected_leaf, rtol=1e-4, atol=1e-4)


def operations(platform, side=16):
    x, _ = arrays(2, side, side, 4, 6)
    variables = {"params": {"kernel": np.ones((3, 3, 4, 6), np.float32), "bias": np.zeros(6, np.float32)}}
    gradient = jax.jit(jax.grad(lambda v: jnp.sin(Conv(6, (3, 3)).apply(v, x)).sum()))
    text = gradient.trace(variables).lower(lowering_platforms=(platform,)).as_text()
    return text.count("stablehlo.convolution"), text.count("stablehlo.dot_general")


def test_choice_of_convolution_by_platform():
    assert operations("cpu") == (1, 3)  # a product for each row of the kernel
    assert operations("tpu") == operations("cuda") == (2, 0)
    assert operations("cpu", side=15) == (2, 0)  # small images use XLA's convolution


def split_over_a_mesh(loss, kernel, x):
    rows = jax.device_put(x, jax.NamedSharding(sharding.make_mesh(jax.devices()), sharding.ROWS))
    return jax.jit(jax.grad(loss))(kernel, rows)


def shard_mapped(loss, kernel, x):
    def gradient(kernel, rows):
        return jax.grad(lambda k: jax.lax.psum(loss(k, rows), ("data", "fsdp")))(kernel)

    specs = dict(in_specs=(PartitionSpec(), sharding.ROWS), out_specs=PartitionSpec())
    mesh = sharding.make_mesh(jax.devices())
    return jax.jit(jax.shard_map(gradient, mesh=mesh, **specs))(kernel, x)


def pmapped(loss, kernel, x):
    def gradient(kernel, rows):
        return jax.lax.psum(jax.grad(loss)(kernel, rows), "batch")

    rows = x.reshape(len(jax.devices()), -1, *x.shape[1:])
    return jax.pmap(gradient, "batch", in_axes=(None, 0), out_axes=None)(kernel, rows)


def rematerialized(loss, kernel, x):
    return jax.jit(jax.grad(jax.checkpoint(loss)))(kernel, x)


RUNS = (split_over_a_mesh, shard_mapped, pmapped, rematerialized)
NORMAL = [(split_over_a_mesh, "into strips"), (shard_mapped, "into parts"), (pmapped, "into parts")]


@pytest.mark.parametrize(("run", "split"), cells(RUNS, ("into parts", "into strips"), normal=NORMAL))
def test_gradient_on_many_devices(run, split, monkeypatch):
    x, _ = arrays(16, 4, 4, 3, 5)
    monkeypatch.setattr(convolution, "FROM_PLACES", 1)
    if split == "into strips":
        in_strips(monkeypatch, 4, 4)
    else:
        images = 1 if run in (shard_mapped, pmapped) else 8
        monkeypatch.setattr(convolution, "COPIES_BYTES", images * 4 * 4 * 3 * 3 * 4)
    kernel = np.random.default_rng(1).standard_normal((3, 3, 3, 5)).astype(np.float32)
    where = dict(window_strides=(1, 1), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def loss(kernel, x):
        return jnp.square(convolution.convolution(x, kernel, **where)).sum()

    plain = jax.lax.conv_general_dilated(x, kernel, **where)
    expected = by_hand(x, 2 * np.asarray(plain), (3, 3))
    np.testing.assert_allclose(run(loss, kernel, x), expected, rtol=1e-4, atol=1e-3)
