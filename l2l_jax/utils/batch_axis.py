"""Random numbers, statistics and interleaving for batches that are split over devices.

Under `jit`, functions operate on the global batch regardless of its sharding, and `axis_name` is None. Inside
`pmap` and `shard_map`, a function receives the rows of one device, and `axis_name` is the axis over which the
batch is split, evenly and in order.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def draw_rows(draw: Callable[[int], Any], rows: int, axis_name: str | None = None) -> Any:
    """Sample random numbers for this device's rows, as a slice of one sample for the global batch.

    `draw` maps a number of rows to a tree of arrays `[rows, …]`. Every device samples the global batch; XLA
    computes only the device's slice where it fuses the two operations.
    """
    if axis_name is None:
        return draw(rows)
    batch = draw(rows * jax.lax.axis_size(axis_name))
    start = rows * jax.lax.axis_index(axis_name)
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, rows), batch)


def mean_and_std(x: jax.Array, axis_name: str | None = None) -> tuple[jax.Array, jax.Array]:
    """Return the mean and unbiased standard deviation over all elements of the global batch, two scalars."""
    count, mean = x.size, x.mean()
    if axis_name is not None:
        count, mean = jax.lax.psum(count, axis_name), jax.lax.pmean(mean, axis_name)
    squares = jnp.sum(jnp.square(x - mean))
    if axis_name is not None:
        squares = jax.lax.psum(squares, axis_name)
    return mean, jnp.sqrt(squares / (count - 1))


def interleave(first: Any, second: Any) -> Any:
    """Interleave two trees of arrays: `k` rows of the first, then one of the second, and so on.

    The first has `k` times as many rows as the second. Unlike concatenation, this does not move rows of a
    batch that is sharded along its first axis.
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
