"""A batch that is split over a mapped axis: random numbers and statistics as if it were whole.

Under `jit` a batch is whole however its rows lie on the devices, and `axis_name` is None. Inside
`pmap` and `shard_map` a function sees the rows of one device; `axis_name` is the axis over which the
batch is split, evenly and in order.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def draw_rows(draw: Callable[[int], Any], rows: int, axis_name: str | None = None) -> Any:
    """Random numbers for this device's rows: its part of what one device would draw for the batch.

    Every device draws for the whole batch and takes its part; XLA computes only that part where it
    fuses the two.

    Args:
      draw: number of rows → tree of arrays that start with that many rows.
      rows: rows on this device.
      axis_name: mapped axis over which the batch is split.

    Returns:
      `draw(rows)`, if the batch is whole; otherwise rows of `draw(rows · devices)`.
    """
    if axis_name is None:
        return draw(rows)
    whole = draw(rows * jax.lax.axis_size(axis_name))
    start = rows * jax.lax.axis_index(axis_name)
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, rows), whole)


def mean_and_std(x: jax.Array, axis_name: str | None = None) -> tuple[jax.Array, jax.Array]:
    """Mean and unbiased standard deviation of all elements of the batch, two scalars.

    Args:
      x: `[rows, …]`, floating point.
      axis_name: mapped axis over which the batch is split.
    """
    count, mean = x.size, x.mean()
    if axis_name is not None:
        count, mean = jax.lax.psum(count, axis_name), jax.lax.pmean(mean, axis_name)
    squares = jnp.sum(jnp.square(x - mean))
    if axis_name is not None:
        squares = jax.lax.psum(squares, axis_name)
    return mean, jnp.sqrt(squares / (count - 1))
