"""Operations and bytes of products, compared with formulas."""

import jax
import jax.numpy as jnp

from l2l_jax.plan.work import work_of

X, W = jax.ShapeDtypeStruct((4, 8), jnp.bfloat16), jax.ShapeDtypeStruct((8, 16), jnp.bfloat16)


def test_product():
    work = work_of(jnp.dot, X, W)
    assert work == (2 * 4 * 8 * 16, 2 * (4 * 8 + 8 * 16 + 4 * 16))


def test_loop_bodies_are_counted_per_iteration():
    square = jax.ShapeDtypeStruct((8, 8), jnp.float32)

    def function(x, w):
        return jax.lax.scan(lambda x, _: (jax.checkpoint(jnp.dot)(x, w), None), x, length=5)[0]

    start = jax.ShapeDtypeStruct((4, 8), jnp.float32)
    assert work_of(jax.jit(function), start, square).flops == 5 * 2 * 4 * 8 * 8

    def loss(w, x):
        return function(x, w).sum()

    # Backward, one product for the input and one for the kernel; neither needs the forward result.
    assert work_of(jax.grad(loss), square, start).flops == 5 * 3 * 2 * 4 * 8 * 8


def test_convolutions_and_their_gradients():
    """Strided, dilated and grouped: 2 · outputs · kernel per output; each gradient has the same cost."""
    numbers = ("NHWC", "HWIO", "NHWC")
    x, kernel = jnp.ones((2, 8, 8, 6)), jnp.ones((3, 3, 3, 10))

    def convolution(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=numbers, feature_group_count=2
        )

    forward = 2 * (2 * 4 * 4 * 10) * (3 * 3 * 3)
    assert work_of(convolution, x, kernel).flops == forward
    backward = work_of(jax.grad(lambda x: convolution(x, kernel).sum()), x).flops
    assert backward == 2 * forward  # includes the forward pass, which grad traces


def test_pmap_counts_every_device():
    devices = jax.device_count()
    doubled = jax.pmap(lambda x, w: x @ w, in_axes=(0, None))
    rows = jax.ShapeDtypeStruct((devices, *X.shape), X.dtype)
    assert work_of(doubled, rows, W).flops == devices * 2 * 4 * 8 * 16


def test_largest_branch_of_a_conditional_is_counted():
    def function(x, w):
        return jax.lax.cond(x.sum() > 0, lambda x, w: (x @ w) @ w.T @ w, lambda x, w: x @ w, x, w)

    assert work_of(function, X, W).flops == 3 * 2 * 4 * 8 * 16


def test_cpu_specific_branches_are_ignored():
    def function(x, w):
        return jax.lax.platform_dependent(x, w, cpu=lambda x, w: (x @ w) @ w.T @ w, default=jnp.dot)

    assert work_of(function, X, W).flops == 2 * 4 * 8 * 16
