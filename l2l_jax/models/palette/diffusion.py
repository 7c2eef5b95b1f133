"""Gaussian diffusion conditioned on the noise level γ (Ho et al. 2020; Chen et al. 2021).

A noisy image is √γ · image + √(1 − γ) · noise, where γ is the product of 1 − β up to a time step. The process
is that of Palette (Saharia et al. 2022) as reimplemented by Janspiry and used by Li et al. Schedules are
computed in NumPy float64 and cast at the end, because float32 products would lose the last γ.
"""

from __future__ import annotations  # jaxtyping is not needed at run time

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from jax import Array

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Int

    Images = Float[Array, "batch height width channel"]
    Betas = Float64[np.ndarray, " timesteps"]

BetaSchedule = Literal["linear", "quad", "const", "warmup10", "warmup50", "cosine"]


def beta_schedule(kind: BetaSchedule, timesteps: int, linear_start: float, linear_end: float) -> Betas:
    """Return noise variances β from `linear_start` to `linear_end`, both in (0, 1).

    "quad": √β is linear; "const": `linear_end`; "warmup10", "warmup50": linear over the first 10% or 50%,
    then `linear_end`; "cosine": Nichol and Dhariwal 2021, which ignores both ends. Palette's "jsd" is not
    supported, because it ends at β = 1, which cannot be reversed. Other kinds raise a ValueError.
    """
    if kind not in get_args(BetaSchedule):
        raise ValueError(f"schedule must be one of {', '.join(get_args(BetaSchedule))}, not {kind!r}")
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


def cumulative_gammas(betas: Betas) -> Betas:
    """Return γ, the cumulative product of 1 − β."""
    return np.cumprod(1.0 - np.asarray(betas, np.float64))


def _posterior(betas: Betas) -> tuple[Betas, Betas, Betas, Betas]:
    """Return γ, and the factors of y_0 and y_t and the variance of the posterior q(y_{t−1} | y_t, y_0)."""
    gammas = cumulative_gammas(betas)
    previous = np.append(1.0, gammas[:-1])
    start = betas * np.sqrt(previous) / (1.0 - gammas)
    noisy = (1.0 - previous) * np.sqrt(1.0 - betas) / (1.0 - gammas)
    return gammas, start, noisy, betas * (1.0 - previous) / (1.0 - gammas)


def schedule_buffers(betas: Betas) -> dict[str, np.ndarray]:
    """Return the schedule buffers of a PyTorch Palette network: six float32 arrays `[timesteps]`."""
    gammas, start, noisy, variance = _posterior(betas)
    buffers = {
        "gammas": gammas,
        "sqrt_recip_gammas": np.sqrt(1.0 / gammas),
        "sqrt_recipm1_gammas": np.sqrt(1.0 / gammas - 1),
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": start,
        "posterior_mean_coef2": noisy,
    }
    return {name: value.astype(np.float32) for name, value in buffers.items()}


def gamma_between(
    gammas: Float[Array, " timesteps"], t: Int[Array, " batch"], u: Float[Array, " batch"]
) -> Float[Array, " batch"]:
    """Interpolate γ between steps t − 1 and t by u in [0, 1) (Chen et al. 2021, section 3.2)."""
    before, after = gammas[t - 1], gammas[t]
    return (after - before) * u + before


def q_sample(images: Images, gamma: Float[Array, " batch"], noise: Images) -> Images:
    """Compute √γ · image + √(1 − γ) · noise."""
    gamma = gamma[:, None, None, None]
    return jnp.sqrt(gamma) * images + jnp.sqrt(1 - gamma) * noise


class ReverseSteps(NamedTuple):
    """Coefficients of reverse steps, float32 `[steps]`, in sampling order."""

    gamma: Any  # noise level passed to the network
    # Clean image = first · noisy − second · predicted noise
    start_from_noisy: Any
    start_from_noise: Any
    # Mean of the next, less noisy image = first · clean image (clipped) + second · noisy image
    next_from_start: Any
    next_from_noisy: Any
    sigma: Any  # standard deviation of the noise added to the mean; 0 in the last step


def ancestral_steps(betas: Betas) -> ReverseSteps:
    """Return all steps of the schedule, from the last to the first (Ho et al. 2020, algorithm 2)."""
    gammas, start, noisy, variance = _posterior(betas)
    return _steps(gammas, start, noisy, np.sqrt(variance))


def random_steps(steps: ReverseSteps, scale: float = 1.0) -> ReverseSteps:
    """Return steps that sample the posterior between noise levels of `steps`, with noise times `scale`."""
    levels = np.asarray(steps.gamma, np.float64)[::-1]
    gammas, start, noisy, variance = _posterior(1.0 - levels / np.append(1.0, levels[:-1]))
    return _steps(gammas, start, noisy, scale * np.sqrt(variance))


def ddim_steps(betas: Betas, count: int) -> ReverseSteps:
    """Return deterministic steps, evenly spaced in time (Song et al. 2021, equation 12, σ = 0).

    The predicted noise is recomputed from the clipped clean image.
    """
    if not 1 <= count <= len(betas):
        raise ValueError(f"DDIM takes 1 to {len(betas)} steps of this schedule, not {count}")
    times = np.linspace(len(betas) - 1, 0, count).round().astype(int)[::-1]
    gammas = cumulative_gammas(betas)[times]
    previous = np.append(1.0, gammas[:-1])
    noisy = np.sqrt((1.0 - previous) / (1.0 - gammas))
    return _steps(gammas, np.sqrt(previous) - np.sqrt(gammas) * noisy, noisy, np.zeros(count))


def _steps(gammas: Betas, next_from_start: Betas, next_from_noisy: Betas, sigma: Betas) -> ReverseSteps:
    clean = np.sqrt(1.0 / gammas), np.sqrt(1.0 / gammas - 1)
    steps = (gammas, *clean, next_from_start, next_from_noisy, sigma)
    return ReverseSteps(*(value[::-1].astype(np.float32) for value in steps))


def reverse_step(
    step: ReverseSteps, noisy: Images, predicted: Images, noise: Images, value_range: Any = (-1.0, 1.0)
) -> Images:
    """Return the next, less noisy image from predicted noise; the clean image is clipped to `value_range`."""
    start = jnp.clip(step.start_from_noisy * noisy - step.start_from_noise * predicted, *value_range)
    mean = step.next_from_start * start + step.next_from_noisy * noisy
    return mean + step.sigma * noise
