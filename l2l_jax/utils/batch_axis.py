"""Batches that are split over devices: random numbers, statistics and pairs of batches.

Under `jit` a batch is whole, wherever its rows are stored, and `axis_name` is None. Inside `pmap` and
`shard_map` a function gets the rows of one device, and `axis_name` is the axis over which the batch is
split, evenly and in order.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def draw_rows(draw: Callable[[int], Any], rows: int, axis_name: str | None = None) -> Any:
    """Draw random numbers for this device's rows: its part of one draw for the whole batch.

    `draw` turns a number of rows into a tree of arrays `[rows, …]`. Every device draws for the whole batch;
    XLA computes only the device's part where it fuses the two.
    """
    if axis_name is None:
        return draw(rows)
    whole = draw(rows * jax.lax.axis_size(axis_name))
    start = rows * jax.lax.axis_index(axis_name)
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, rows), whole)


def mean_and_std(x: jax.Array, axis_name: str | None = None) -> tuple[jax.Array, jax.Array]:
    """Return the mean and the unbiased standard deviation of all elements of the batch, two scalars."""
    count, mean = x.size, x.mean()
    if axis_name is not None:
        count, mean = jax.lax.psum(count, axis_name), jax.lax.pmean(mean, axis_name)
    squares = jnp.sum(jnp.square(x - mean))
    if axis_name is not None:
        squares = jax.lax.psum(squares, axis_name)
    return mean, jnp.sqrt(squares / (count - 1))


def interleave(first: Any, second: Any) -> Any:
    """Merge two trees of arrays: `k` rows of the first, which has `k` times as many, then one of the second.

    Unlike after a concatenation, a batch that is sharded along its first axis stays where it is.
    """

    def leaf(a, b):
        groups = a.reshape(len(b), -1, *a.shape[1:])
        return jnp.concatenate([groups, b[:, None]], axis=1).reshape(-1, *a.shape[1:])

    return jax.tree.map(leaf, first, second)


def deinterleave(both: Any, k: int = 1) -> tuple[Any, Any]:
    """Invert `interleave`."""

    def groups(x):
        return x.reshape(-1, k + 1, *x.shape[1:])

    first = jax.tree.map(lambda x: groups(x)[:, :k].reshape(-1, *x.shape[1:]), both)
    return first, jax.tree.map(lambda x: groups(x)[:, k], both)
