"""bfloat16: which arrays are rounded, and no effect of rounding parameters in advance."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax.traverse_util import flatten_dict

from l2l_jax.models.layers import gelu, gelu_by_erf
from tests.matrix import soak
from tests.train.families import MODELS, images_of, params_of

FLOAT32 = {
    "mae": {"decoder/decoder_pred"},
    "mage": {"tokenizer/encoder/conv_out", "tokenizer/decoder/conv_out"},
    "palette": {"encoder/cond_embed/dense_0", "encoder/cond_embed/dense_1", "decoder/out_conv"},
    "latent_diffusion": {
        *("encoder/time_embedding/linear_1", "encoder/time_embedding/linear_2", "decoder/conv_out"),
        *("vae/encoder/conv_out", "vae/decoder/conv_out", "vae/quant_conv", "vae/post_quant_conv"),
    },
}
"""Modules whose kernels stay float32."""

exact_jit = functools.partial(jax.jit, compiler_options={"xla_allow_excess_precision": False})
"""`jax.jit` that keeps explicit rounding, which XLA would otherwise remove."""


def low(family):
    own = {"mage": {"tokenizer_dtype": "bfloat16"}, "latent_diffusion": {"vae_dtype": "bfloat16"}}
    return dataclasses.replace(MODELS[family], dtype="bfloat16", **own.get(family, {}))


@pytest.fixture(scope="module", params=["mae", *map(soak, ("mage", "palette", "latent_diffusion"))])
def case(request):
    """A family, its parameters, its features by precision, and gradient and prediction in bfloat16."""
    family = request.param
    params, (batch,) = params_of(MODELS[family]), images_of(family, 1, 4)
    corrupted = exact_jit(MODELS[family].corrupt)(params, batch["retain"], jax.random.key(0))
    exact = exact_jit(MODELS[family].encode)(params["encoder"], corrupted)
    results = {"float32": (jax.device_get(exact),)}
    for name in ("bfloat16", "rounded before"):
        model = low(family)
        given = jax.device_get(model.in_compute_dtype(params)) if name == "rounded before" else params

        def loss(encoder, model=model):
            features = model.encode(encoder, corrupted)
            squares = [jnp.square(x.astype(jnp.float32)).mean() for x in jax.tree.leaves(features)]
            return sum(squares), features

        grad_fn = exact_jit(jax.value_and_grad(loss, has_aux=True))
        (_, features), gradient = grad_fn(given["encoder"])
        results[name] = jax.device_get((features, gradient, exact_jit(model.predict)(given, corrupted)))
    return family, params, results


def test_casting_parameters_in_advance_has_no_effect(case):
    """The layers round the same values: features and predictions are bit-identical, and gradients are equal
    up to one rounding to bfloat16."""
    _, _, results = case
    for i in (0, 2):
        jax.tree.map(np.testing.assert_array_equal, results["rounded before"][i], results["bfloat16"][i])
    gradient = jax.tree.map(lambda x: np.asarray(x, np.float32), results["rounded before"][1])
    for mine, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(results["bfloat16"][1]), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=2**-7, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("family", MODELS)
def test_only_kernels_and_their_biases_are_rounded(family):
    params = params_of(MODELS[family])
    flat = flatten_dict(low(family).in_compute_dtype(params), sep="/")
    for name, value in flat.items():
        module, _, leaf = name.rpartition("/")
        beside_a_kernel = f"{module}/kernel" in flat and leaf in ("kernel", "bias")
        unused = module.startswith("unused")
        low_precision = beside_a_kernel and module not in FLOAT32[family] and not unused
        if name == "holes" or unused:
            continue
        assert value.dtype == (jnp.bfloat16 if low_precision else np.float32), name
    same = MODELS[family].in_compute_dtype(params)
    assert all(a is b for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(params), strict=True))
    (batch,), model = images_of(family, 1, 4), low(family)
    corrupted = jax.eval_shape(model.corrupt, params, batch["retain"], jax.random.key(0))
    rounded = jax.eval_shape(model.in_compute_dtype, params)
    features = jax.tree.leaves(jax.eval_shape(model.encode, rounded["encoder"], corrupted))
    maps = family in ("palette", "latent_diffusion")
    assert {x.dtype for x in features} == {np.dtype(jnp.bfloat16 if maps else np.float32)}
    assert jax.eval_shape(model.predict, rounded, corrupted).dtype == np.float32


def test_loss_inputs_are_close_to_float32(case):
    """bfloat16 has 8 bits: a few consecutive products of dozens of values are accurate to a few percent."""
    _, _, results = case
    exact, rounded = results["float32"], results["bfloat16"]
    for one, other in zip(jax.tree.leaves(exact[0]), jax.tree.leaves(rounded[0]), strict=True):
        error = np.abs(np.asarray(other, np.float32) - one).max() / np.abs(one).max()
        assert 0 < error < 0.03


def test_gelu():
    """GPUs compute it in float32, others as JAX does; for bfloat16 gradients, only the input is saved."""
    x = np.linspace(-6, 6, 1001, dtype=np.float32)
    exact = x * scipy.stats.norm.cdf(x)
    np.testing.assert_allclose(gelu_by_erf(x), exact, atol=1e-6)
    np.testing.assert_allclose(gelu_by_erf(jnp.bfloat16(x)), exact, rtol=2**-6, atol=1e-3)
    for values in (x, jnp.bfloat16(x)):
        plain = functools.partial(jax.nn.gelu, approximate=False)
        actual, expected = (exact_jit(jax.vmap(jax.value_and_grad(f)))(values) for f in (gelu, plain))
        jax.tree.map(np.testing.assert_array_equal, actual, expected)
    _, kept = jax.vjp(gelu, jnp.bfloat16(x))
    assert [leaf.shape for leaf in jax.tree.leaves(kept)] == [x.shape]
