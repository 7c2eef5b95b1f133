"""The noise images that stand in for forget images in front of the teacher."""

from typing import Literal

import jax
import jax.numpy as jnp

from l2l_jax.batch_axis import draw_rows, mean_and_std

NoiseKind = Literal["normal", "uniform", "constant"]
NOISE_KINDS: tuple[str, ...] = ("normal", "uniform", "constant")


def noise_images(
    images: jax.Array,
    rng: jax.Array,
    kind: NoiseKind = "normal",
    *,
    value_range: tuple[float, float] = (0.0, 1.0),
    axis_name: str | None = None,
) -> jax.Array:
    """Noise images n ~ N(0, Σ) in the shape of `images` (Li et al. 2024, section 3).

    Among signals of a given covariance the Gaussian carries the most entropy, hence "normal". The
    statistics are scalars over the *global* batch: pass `axis_name` inside `pmap` or `shard_map`;
    under `jit` the batch is global already.

    Args:
      images: `[batch, height, width, channel]` within `value_range`.
      rng: key, the same on every device: its rows of what is drawn for the whole batch are its own.
      kind: "normal" has the mean and (unbiased) standard deviation of the pixels and is clipped to
        `value_range`; "uniform" is uniform over `value_range`; "constant" is the mean everywhere.
      value_range: least and greatest valid pixel.
      axis_name: mapped axis over which the batch is split.

    Raises:
      ValueError: an unknown kind, or a `value_range` that is not increasing.
    """
    low, high = value_range
    if not low < high:
        raise ValueError(f"value_range must increase, not {value_range}")
    if kind not in NOISE_KINDS:
        raise ValueError(f"kind must be one of {', '.join(NOISE_KINDS)}, not {kind!r}")
    rows, *shape = images.shape

    def uniform(n):
        return jax.random.uniform(rng, (n, *shape), images.dtype, low, high)

    def standard_normal(n):
        return jax.random.normal(rng, (n, *shape), images.dtype)

    if kind == "uniform":
        return draw_rows(uniform, rows, axis_name)
    mean, std = mean_and_std(images, axis_name)
    if kind == "constant":
        return jnp.full_like(images, mean)
    return jnp.clip(mean + std * draw_rows(standard_normal, rows, axis_name), low, high)
