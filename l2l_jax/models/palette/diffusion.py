"""Gaussian diffusion conditioned on the noise level γ (Ho et al. 2020; Chen et al. 2021).

A noisy image is √γ · image + √(1 − γ) · noise, γ the product of 1 − β up to a time step. Equal to
the process of Palette (Saharia et al. 2022) as re-implemented by Janspiry and used by Li et al.
Schedules are NumPy float64 and cast at the end: float32 products would lose the last γ.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

BetaSchedule = Literal["linear", "quad", "const", "warmup10", "warmup50", "cosine"]
BETA_SCHEDULES: tuple[str, ...] = ("linear", "quad", "const", "warmup10", "warmup50", "cosine")


def beta_schedule(kind: BetaSchedule, timesteps: int, linear_start: float, linear_end: float) -> np.ndarray:
    """Return noise variances β `[timesteps]`, float64.

    Args:
      kind: "linear"; "quad": √β is linear; "const": `linear_end`; "warmup10", "warmup50": linear
        over the first 10 % or 50 %, then `linear_end`; "cosine": Nichol and Dhariwal 2021, which
        has no ends. (Palette's "jsd" ends at β = 1, where no step leads back.)
      timesteps: Number of time steps.
      linear_start: First β, in (0, 1).
      linear_end: Last β, in (0, 1).

    Raises:
      ValueError: An unknown kind, no time step, or ends outside (0, 1).
    """
    if kind not in BETA_SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(BETA_SCHEDULES)}, not {kind!r}")
    if timesteps < 1 or not (0 < linear_start < 1 and 0 < linear_end < 1):
        raise ValueError(
            "a schedule needs at least one step and variances in (0, 1), not "
            f"{timesteps} steps from {linear_start} to {linear_end}"
        )
    if kind == "linear":
        return np.linspace(linear_start, linear_end, timesteps)
    if kind == "quad":
        return np.linspace(linear_start**0.5, linear_end**0.5, timesteps) ** 2
    if kind == "cosine":
        offset = 8e-3
        angle = (np.arange(timesteps + 1) / timesteps + offset) / (1 + offset) * np.pi / 2
        gammas = np.cos(angle) ** 2
        return np.minimum(1 - gammas[1:] / gammas[:-1], 0.999)
    betas = np.full(timesteps, linear_end, np.float64)
    if kind != "const":
        warmup = int(timesteps * (0.1 if kind == "warmup10" else 0.5))
        betas[:warmup] = np.linspace(linear_start, linear_end, warmup)
    return betas


def cumulative_gammas(betas: np.ndarray) -> np.ndarray:
    """Return γ `[timesteps]`, the running product of 1 − β, float64."""
    return np.cumprod(1.0 - np.asarray(betas, np.float64))


def schedule_buffers(betas: np.ndarray) -> dict[str, np.ndarray]:
    """Return what a PyTorch Palette network keeps of its schedule: six float32 arrays `[timesteps]`."""
    gammas = cumulative_gammas(betas)
    previous = np.append(1.0, gammas[:-1])
    variance = betas * (1.0 - previous) / (1.0 - gammas)
    buffers = {
        "gammas": gammas,
        "sqrt_recip_gammas": np.sqrt(1.0 / gammas),
        "sqrt_recipm1_gammas": np.sqrt(1.0 / gammas - 1),
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(previous) / (1.0 - gammas),
        "posterior_mean_coef2": (1.0 - previous) * np.sqrt(1.0 - betas) / (1.0 - gammas),
    }
    return {name: value.astype(np.float32) for name, value in buffers.items()}


def gamma_between(gammas: Array, t: Array, u: Array) -> Array:
    """Interpolate γ between the steps t − 1 and t by u in [0, 1) (Chen et al. 2021, section 3.2)."""
    before, after = gammas[t - 1], gammas[t]
    return (after - before) * u + before


def q_sample(images: Array, gamma: Array, noise: Array) -> Array:
    """Return √γ · image + √(1 − γ) · noise, for γ `[batch]`."""
    gamma = gamma[:, None, None, None]
    return jnp.sqrt(gamma) * images + jnp.sqrt(1 - gamma) * noise


class ReverseSteps(NamedTuple):
    """Reverse steps as coefficients, float32 `[steps]` in the order in which they are taken.

    One element of every array, by `jax.lax.scan`, is one step.

    Attributes:
      gamma: Noise level that the network is given.
      start_from_noisy, start_from_noise: Clean image = first · noisy − second · predicted noise.
      next_from_start, next_from_noisy: Mean of the next, less noisy image = first · clean image
        (clipped) + second · noisy image.
      sigma: Standard deviation of the noise added to that mean; 0 in the last step.
    """

    gamma: np.ndarray | Array
    start_from_noisy: np.ndarray | Array
    start_from_noise: np.ndarray | Array
    next_from_start: np.ndarray | Array
    next_from_noisy: np.ndarray | Array
    sigma: np.ndarray | Array


def ancestral_steps(betas: np.ndarray) -> ReverseSteps:
    """Return all steps of the schedule from the last to the first (Ho et al. 2020, algorithm 2).

    The mean is that of the posterior q(y_{t−1} | y_t, y_0), sigma its standard deviation.
    """
    gammas = cumulative_gammas(betas)
    previous = np.append(1.0, gammas[:-1])
    return _steps(
        gammas,
        next_from_start=betas * np.sqrt(previous) / (1.0 - gammas),
        next_from_noisy=(1.0 - previous) * np.sqrt(1.0 - betas) / (1.0 - gammas),
        sigma=np.sqrt(betas * (1.0 - previous) / (1.0 - gammas)),
    )


def ddim_steps(betas: np.ndarray, count: int) -> ReverseSteps:
    """Return deterministic steps, evenly spaced in time (Song et al. 2021, equation 12, σ = 0).

    The predicted noise is taken anew from the clipped clean image, which makes the next image a
    combination of the two images that `reverse_step` combines.
    """
    if not 1 <= count <= len(betas):
        raise ValueError(f"DDIM takes 1 to {len(betas)} steps of this schedule, not {count}")
    last = len(betas) - 1
    times = np.linspace(last, 0, count).round().astype(int)[::-1]
    gammas = cumulative_gammas(betas)[times]
    previous = np.append(1.0, gammas[:-1])
    from_noisy = np.sqrt((1.0 - previous) / (1.0 - gammas))
    return _steps(
        gammas,
        next_from_start=np.sqrt(previous) - np.sqrt(gammas) * from_noisy,
        next_from_noisy=from_noisy,
        sigma=np.zeros(count),
    )


def _steps(gammas: np.ndarray, **coefficients: np.ndarray) -> ReverseSteps:
    steps = ReverseSteps(
        gamma=gammas,
        start_from_noisy=np.sqrt(1.0 / gammas),
        start_from_noise=np.sqrt(1.0 / gammas - 1),
        **coefficients,
    )
    return ReverseSteps(*(value[::-1].astype(np.float32) for value in steps))


def predict_start(step: ReverseSteps, noisy: Array, predicted_noise: Array) -> Array:
    """Return the clean image that the predicted noise implies, not clipped; one step, scalars."""
    return step.start_from_noisy * noisy - step.start_from_noise * predicted_noise  # type: ignore[return-value]  # one of them is a JAX array


def reverse_step(
    step: ReverseSteps,
    noisy: Array,
    predicted_noise: Array,
    noise: Array,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> Array:
    """Return the next, less noisy image; the clean image is clipped to `value_range`."""
    start = jnp.clip(predict_start(step, noisy, predicted_noise), *value_range)
    mean = step.next_from_start * start + step.next_from_noisy * noisy
    return mean + step.sigma * noise  # type: ignore[return-value]  # one of them is a JAX array
