"""AdamW as in the published configs, and Muon for models with fresh weights."""

import dataclasses
import itertools
from typing import Any, Literal

import jax
import optax
import optax.contrib

MUON_RMS = 0.2
"""Root mean square of Muon's updates, relative to the learning rate. It is similar to that of AdamW, so both
can share learning rates and weight decay (Liu et al. 2025, "Muon is scalable for LLM training")."""


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Number of steps, learning rate and optimizer of a training run.

    Attributes:
      steps: Number of optimizer steps.
      batch_size: Number of images per set in the global batch.
      learning_rate: Peak learning rate of the schedule.
      optimizer: "adamw"; or "muon", which orthogonalizes the update of every kernel (Jordan et al. 2024) and
        uses Adam without weight decay at the same learning rate for the rest, both with Nesterov momentum.
        With "muon", networks with random weights learn in fewer steps.
      warmup_steps: Number of steps of the linear warm-up from 0.
      schedule: Schedule after the warm-up: "cosine", half a cosine to 0 at the last step, or "constant".
      weight_decay: Decoupled weight decay of matrices and kernels; not of biases, norms and other vectors.
      beta1: Decay of the first moment.
      beta2: Decay of the second moment.
      clip_norm: Greatest global norm of the gradient; 0 disables clipping.
      ema_decay: Decay of the moving average of the parameters; 0 disables it. If enabled, the average is the
        result.
      accumulate: Number of microbatches of a batch for gradient accumulation.
      checkpoint_every: Number of steps between checkpoints.
      log_every: Number of steps between log lines and metrics.
    """

    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 1e-3
    optimizer: Literal["adamw", "muon"] = "adamw"
    warmup_steps: int = 0
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.95
    clip_norm: float = 3.0
    ema_decay: float = 0.0
    accumulate: int = 1
    checkpoint_every: int = 500
    log_every: int = 20

    @property
    def cycles(self) -> tuple[int, ...]:
        """Return the lengths of the cycles of the learning rate."""
        return (self.steps,)

    def cycle_of(self, step: int) -> tuple[int, int]:
        """Return the last step before the cycle of a step, and the last step of the cycle."""
        ends = itertools.accumulate(self.cycles, initial=0)
        return next((start, end) for start, end in itertools.pairwise(ends) if step <= end)

    @property
    def batch_parts(self) -> int:
        """Return the number of equal parts into which the rows of a device are split."""
        return self.accumulate

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulate", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("learning_rate", "warmup_steps", "weight_decay", "clip_norm"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be finite and not negative, not {getattr(self, name)}")
        for name in ("beta1", "beta2", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be less than steps {self.steps}")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}"
            )


def learning_rate_schedule(config: TrainingConfig) -> optax.Schedule:
    """Return a schedule with linear warm-up from 0, then constant or half a cosine to 0 in each cycle."""
    rate, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "constant":
        return optax.warmup_constant_schedule(0.0, rate, warmup) if warmup else optax.constant_schedule(rate)
    cycles = [optax.warmup_cosine_decay_schedule(0.0, rate, warmup, length) for length in config.cycles]
    return optax.join_schedules(cycles, list(itertools.accumulate(config.cycles))[:-1])


def decayed(params: Any) -> Any:
    """Return a tree of bools: True for arrays with weight decay, False for biases, norms and vectors."""

    def leaf(path, value):
        return value.ndim > 1 and getattr(path[-1], "key", None) != "bias"

    return jax.tree_util.tree_map_with_path(leaf, params)


def kernels(params: Any) -> Any:
    """Return a tree of Muon's dimension numbers, which treat kernels as matrices; None for other arrays."""

    def leaf(path, value):
        if getattr(path[-1], "key", None) != "kernel" or value.ndim < 2:
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(value.ndim - 1)), value.ndim - 1)

    return jax.tree_util.tree_map_with_path(leaf, params)


def make_optimizer(config: TrainingConfig) -> optax.GradientTransformation:
    """Return an optimizer that clips by global norm, then applies AdamW or Muon with the schedule.

    `clip_norm` has no effect on kernels updated by Muon, which is invariant to the gradient norm.
    """
    rate = learning_rate_schedule(config)
    if config.optimizer == "muon":
        update = optax.contrib.muon(
            rate,
            beta=config.beta1,
            adam_b1=config.beta1,
            adam_b2=config.beta2,
            nesterov=True,
            weight_decay=config.weight_decay,
            muon_weight_dimension_numbers=kernels,
            consistent_rms=MUON_RMS,
        )
    else:
        update = optax.adamw(
            rate, b1=config.beta1, b2=config.beta2, weight_decay=config.weight_decay, mask=decayed
        )
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(clip, update)
