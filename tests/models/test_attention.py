"""Choice of attention kernels, read from the lowered program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2l_jax.models.layers.attention import attend_even, attention


def lowered(dtype, platform, channels=64, tokens=50):
    q = jax.ShapeDtypeStruct((2, tokens, 4, channels), dtype)

    def gradient(q):
        return jax.grad(lambda q: attention(q, q, q).astype(jnp.float32).sum())(q)

    return jax.jit(gradient).trace(q).lower(lowering_platforms=(platform,)).as_text()


def with_gradients(attend):
    return jax.jit(jax.value_and_grad(lambda *x: jnp.square(attend(*x)).sum(), argnums=(0, 1, 2)))


def test_attention_matches_its_definition():
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 2, 5, 3, 8), np.float32)
    weight = np.exp(np.einsum("bqhc,bkhc->bhqk", q, k) / np.sqrt(8))
    expected = np.einsum("bhqk,bkhc->bqhc", weight / weight.sum(-1, keepdims=True), v)
    np.testing.assert_allclose(attention(q, k, v), expected, atol=1e-5)


@pytest.mark.parametrize("tokens", [(5, 5), (4, 7), (4, 4)])
def test_padding_token_has_no_effect(tokens):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, n, 3, 8), np.float32) for n in (tokens[0], tokens[1], tokens[1]))

    even = functools.partial(attend_even, implementation="xla")
    actual, expected = (with_gradients(attend)(q, k, v) for attend in (even, jax.nn.dot_product_attention))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), actual, expected)


def test_many_queries_are_processed_in_chunks():
    """Results and gradients match JAX's attention, and the program has no array of all logits."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, tokens, 1, 2), np.float32) for tokens in (4096, 2048, 2048))

    program = with_gradients(attention).lower(q, k, v)
    actual, expected = program.compile()(q, k, v), with_gradients(jax.nn.dot_product_attention)(q, k, v)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), actual, expected)
    assert "4096x2048" not in program.as_text()


def test_cudnn_is_used_for_gpus_and_half_precision():
    pytest.importorskip("nvidia.cudnn")
    cudnn = "__cudnn$fmhaSoftmaxBackward"
    assert cudnn in lowered(jnp.bfloat16, "cuda")
    assert cudnn not in lowered(jnp.float32, "cuda")
    assert cudnn not in lowered(jnp.bfloat16, "cuda", channels=60)
    assert cudnn in lowered(jnp.bfloat16, "cuda", tokens=51)
    assert cudnn not in lowered(jnp.bfloat16, "cpu") and cudnn not in lowered(jnp.bfloat16, "tpu")
