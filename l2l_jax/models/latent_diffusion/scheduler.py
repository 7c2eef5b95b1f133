"""Noise schedules of latent diffusion, and deterministic sampling (DDIM; Song, Meng, Ermon 2021).

Equivalent to diffusers' `DDIMScheduler` with eta 0. ᾱ, the cumulative product of 1 − β, is computed in
float64 and rounded to float32.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Self

import jax.numpy as jnp
import numpy as np
from jax import Array

from l2l_jax.models.latent_diffusion.blocks import check_config

SUPPORTED = dict(
    beta_schedule=("scaled_linear", "linear"),
    prediction_type=("epsilon", "v_prediction"),
    timestep_spacing=("leading", "trailing", "linspace"),
    thresholding=(False, None),
    trained_betas=(None,),
)
"""Supported values in scheduler_config.json."""

# Classes whose `clip_sample` defaults to true
CLIPS_BY_DEFAULT = ("DDIMScheduler", "DDPMScheduler")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A noise schedule with its training targets and sampling steps.

    Attributes:
      train_timesteps: Number of noise levels; time steps are 0 to `train_timesteps` − 1.
      beta_start, beta_end: First and last β.
      beta_schedule: "scaled_linear": √β is linear in time; "linear": β is linear in time.
      prediction_type: Output of the network: "epsilon", the noise, or "v_prediction",
        √ᾱ · noise − √(1 − ᾱ) · latents (Salimans and Ho 2022).
      zero_snr: Rescale √ᾱ to end at 0 (Lin et al. 2024).
      timestep_spacing, steps_offset: Time steps of sampling, see `timesteps`.
      set_alpha_to_one: Whether the last step ends at ᾱ = 1; otherwise it ends at the ᾱ of time step 0.
      clip_range: Clip predicted clean latents to [−`clip_range`, `clip_range`]; 0 disables clipping.
    """

    train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: Literal["scaled_linear", "linear"] = "scaled_linear"
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    zero_snr: bool = False
    timestep_spacing: Literal["leading", "trailing", "linspace"] = "leading"
    steps_offset: int = 1
    set_alpha_to_one: bool = False
    clip_range: float = 0.0

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> Self:
        """Read scheduler_config.json of any diffusers scheduler as `DDIMScheduler.from_config` does.

        Unlike there, latents are clipped only if the file says so or its class clips by default. Unsupported
        values raise a UserError that names them.
        """
        check_config("scheduler/scheduler_config.json", config, SUPPORTED)
        clips = config.get("clip_sample", config.get("_class_name") in CLIPS_BY_DEFAULT)
        return cls(
            train_timesteps=config.get("num_train_timesteps", 1000),
            beta_start=config.get("beta_start", 0.0001),
            beta_end=config.get("beta_end", 0.02),
            beta_schedule=config.get("beta_schedule", "linear"),
            prediction_type=config.get("prediction_type", "epsilon"),
            zero_snr=config.get("rescale_betas_zero_snr", False),
            timestep_spacing=config.get("timestep_spacing", "leading"),
            steps_offset=config.get("steps_offset", 0),
            set_alpha_to_one=config.get("set_alpha_to_one", True),
            clip_range=config.get("clip_sample_range", 1.0) if clips else 0.0,
        )

    def __post_init__(self):
        if self.train_timesteps < 2 or not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                "a schedule needs two time steps or more and 0 < beta_start ≤ beta_end < 1, not "
                f"{self.train_timesteps} steps from {self.beta_start} to {self.beta_end}"
            )
        if self.zero_snr and self.prediction_type == "epsilon":
            raise ValueError("with zero_snr, the last time step is pure noise: expected v_prediction")

    def alphas(self) -> np.ndarray:
        """Return ᾱ, float64 `[train_timesteps]`."""
        if self.beta_schedule == "linear":
            betas = np.linspace(self.beta_start, self.beta_end, self.train_timesteps)
        else:
            betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.train_timesteps) ** 2
        alphas = np.cumprod(1 - betas)
        if self.zero_snr:
            roots = np.sqrt(alphas)
            alphas = np.square((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1]))
        return alphas

    def _factors(self, timesteps: Array, ndim: int) -> tuple[Array, Array]:
        """Return √ᾱ and √(1 − ᾱ) at time steps `[batch]`, for arrays of `ndim` axes."""
        alphas = jnp.asarray(self.alphas(), jnp.float32)[timesteps].reshape(-1, *(1,) * (ndim - 1))
        return jnp.sqrt(alphas), jnp.sqrt(1 - alphas)

    def add_noise(self, latents: Array, noise: Array, timesteps: Array) -> Array:
        """Return √ᾱ · latents + √(1 − ᾱ) · noise, at time steps `[batch]`."""
        signal, sigma = self._factors(timesteps, latents.ndim)
        return signal * latents + sigma * noise

    def target(self, latents: Array, noise: Array, timesteps: Array) -> Array:
        """Return the training target of the network; see `prediction_type`."""
        if self.prediction_type == "epsilon":
            return noise
        signal, sigma = self._factors(timesteps, latents.ndim)
        return signal * noise - sigma * latents

    def timesteps(self, steps: int) -> np.ndarray:
        """Return the time steps for sampling, int32 `[steps]`, descending.

        "leading": multiples of ⌊train_timesteps / steps⌋, plus `steps_offset`; "trailing": evenly spaced,
        starting at the last time step; "linspace": evenly spaced from the last time step to 0.
        """
        if not 1 <= steps <= self.train_timesteps:
            raise ValueError(f"sampling takes 1 to {self.train_timesteps} steps, not {steps}")
        times: np.ndarray
        if self.timestep_spacing == "linspace":
            times = np.linspace(0, self.train_timesteps - 1, steps).round()[::-1]
        elif self.timestep_spacing == "trailing":
            times = np.linspace(self.train_timesteps, 0, steps, endpoint=False).round() - 1
        else:
            times = np.arange(steps)[::-1] * (self.train_timesteps // steps) + self.steps_offset
        return np.minimum(times, self.train_timesteps - 1).astype(np.int32)

    def noise_and_clean(self, predicted: Array, latents: Array, timestep: Any) -> tuple[Array, Array]:
        """Return the noise and the clean latents that a prediction at a time step implies."""
        alpha = jnp.asarray(self.alphas(), jnp.float32)[timestep]
        signal, sigma = jnp.sqrt(alpha), jnp.sqrt(1 - alpha)
        if self.prediction_type == "epsilon":
            noise, clean = predicted, (latents - sigma * predicted) / signal
        else:
            noise, clean = signal * predicted + sigma * latents, signal * latents - sigma * predicted
        if self.clip_range:
            clean = jnp.clip(clean, -self.clip_range, self.clip_range)
        return noise, clean

    def step(
        self, predicted: Array, latents: Array, timestep: Any, steps: int, drawn: Array | None = None
    ) -> Array:
        """Return the next, less noisy latents, given the prediction at one of `timesteps(steps)`.

        With `drawn`, normal noise in the shape of the latents, sample from the posterior (DDIM with η = 1).
        """
        alphas = jnp.asarray(self.alphas(), jnp.float32)
        final = jnp.float32(1) if self.set_alpha_to_one else alphas[0]
        previous = jnp.asarray(timestep) - self.train_timesteps // steps
        alpha = alphas[timestep]
        next_alpha = jnp.where(previous >= 0, alphas[jnp.maximum(previous, 0)], final)
        noise, clean = self.noise_and_clean(predicted, latents, timestep)
        if drawn is None:
            return jnp.sqrt(next_alpha) * clean + jnp.sqrt(1 - next_alpha) * noise
        variance = (1 - next_alpha) / (1 - alpha) * (1 - alpha / next_alpha)
        mean = jnp.sqrt(next_alpha) * clean + jnp.sqrt(1 - next_alpha - variance) * noise
        return mean + jnp.sqrt(variance) * drawn
