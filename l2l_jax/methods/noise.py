"""The noise that takes the place of forget images in front of the teacher, or of their features."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from l2l_jax.models.layers.batch_axis import draw_rows, mean_and_std

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
      images: `[batch, height, width, channel]` within `value_range`, floating point.
      rng: key, the same on every device: its rows of what is drawn for the whole batch are its own.
      kind: "normal" has the mean and (unbiased) standard deviation of the pixels and is clipped to
        `value_range`; "uniform" is uniform over `value_range`; "constant" is the mean everywhere.
      value_range: least and greatest valid pixel.
      axis_name: mapped axis over which the batch is split.

    Raises:
      TypeError: images that are not floating point.
      ValueError: an unknown kind, or a `value_range` that is not increasing.
    """
    low, high = value_range
    if not low < high:
        raise ValueError(f"value_range must increase, not {value_range}")
    if kind not in NOISE_KINDS:
        raise ValueError(f"kind must be one of {', '.join(NOISE_KINDS)}, not {kind!r}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(
            f"images have type {images.dtype}; noise needs floating-point images. "
            f"Convert them to the range {value_range} first."
        )
    rows, *shape = images.shape

    def uniform(n):
        return jax.random.uniform(rng, (n, *shape), images.dtype, low, high)

    def standard_normal(n):
        return jax.random.normal(rng, (n, *shape), images.dtype)

    if kind == "uniform":
        return draw_rows(uniform, rows, axis_name)
    mean, std = mean_and_std(images.astype(jnp.float32), axis_name)
    if kind == "constant":
        return jnp.full_like(images, mean)
    noise = mean + std * draw_rows(standard_normal, rows, axis_name)
    return jnp.clip(noise, low, high).astype(images.dtype)


def noise_features(features: Any, rng: jax.Array, axis_name: str | None = None) -> Any:
    """Gaussian noise with the mean and (unbiased) standard deviation of each array of a tree.

    Args:
      features: a tree of arrays `[batch, …]`; of each the statistics are two scalars, those of the
        whole batch.
      rng: key.
      axis_name: mapped axis over which the batch is split.

    Returns:
      A tree of the same structure, shapes and types.
    """
    leaves, structure = jax.tree.flatten(features)

    def draw(x, key):
        mean, std = mean_and_std(x.astype(jnp.float32), axis_name)
        noise = draw_rows(lambda rows: jax.random.normal(key, (rows, *x.shape[1:])), x.shape[0], axis_name)
        return (mean + std * noise).astype(x.dtype)

    keys = jax.random.split(rng, len(leaves))
    drawn = [draw(x, key) for x, key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, drawn)
