"""AdamW as the published configs use it, and Muon for models that start anew."""

import dataclasses
import itertools
from typing import Any, Literal

import jax
import optax
import optax.contrib

MUON_RMS = 0.2
"""Root mean square of Muon's updates, relative to the rate: about AdamW's, whose rates and decays then serve
both (Liu et al. 2025, "Muon is scalable for LLM training")."""


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Length, rate and optimizer of a training.

    Attributes:
      steps: Optimizer steps.
      batch_size: Images per set in the global batch.
      learning_rate: Peak of the schedule.
      optimizer: "adamw"; or "muon", which makes the update of every kernel orthogonal (Jordan et al. 2024)
        and leaves the rest to Adam, without decay, at the same rate, both with Nesterov momentum: networks of
        random weights learn in fewer steps.
      warmup_steps: Steps of the linear rise from 0.
      schedule: What follows: "cosine", half a cosine down to 0 at the last step, or "constant".
      weight_decay: Decoupled decay of matrices and kernels; biases, norms and other vectors have none.
      beta1: Decay of the first moment.
      beta2: Decay of the second moment.
      clip_norm: Greatest global norm of the gradient; 0 turns clipping off.
      ema_decay: Decay of the moving average of the parameters; 0 turns it off. With it, the average is the
        result.
      accumulate: Number of parts that a batch is split into for gradient accumulation.
      checkpoint_every: Steps between checkpoints.
      log_every: Steps between log lines and metrics.
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
        """Lengths of the cycles in which the learning rate rises and falls."""
        return (self.steps,)

    def cycle_of(self, step: int) -> tuple[int, int]:
        """Return the last step before a step's cycle, and the last one of the cycle."""
        ends = itertools.accumulate(self.cycles, initial=0)
        return next((start, end) for start, end in itertools.pairwise(ends) if step <= end)

    @property
    def batch_parts(self) -> int:
        """Number of parts of equal size that the rows of a device are split into."""
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
                raise ValueError(f"{name} must lie in [0, 1), not {getattr(self, name)}")
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be less than steps {self.steps}")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}"
            )


def learning_rate_schedule(config: TrainingConfig) -> optax.Schedule:
    """Return a linear warm-up from 0, then half a cosine down to 0 at the end of a cycle, or no change."""
    rate, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "constant":
        return optax.warmup_constant_schedule(0.0, rate, warmup) if warmup else optax.constant_schedule(rate)
    cycles = [optax.warmup_cosine_decay_schedule(0.0, rate, warmup, length) for length in config.cycles]
    return optax.join_schedules(cycles, list(itertools.accumulate(config.cycles))[:-1])


def decayed(params: Any) -> Any:
    """Return a tree of bools: True where weight decay applies, which is not in biases, norms and vectors."""

    def leaf(path, value):
        return value.ndim > 1 and getattr(path[-1], "key", None) != "bias"

    return jax.tree_util.tree_map_with_path(leaf, params)


def kernels(params: Any) -> Any:
    """Return a tree of Muon's dimension numbers: kernels are matrices from inputs to outputs, others None."""

    def leaf(path, value):
        if getattr(path[-1], "key", None) != "kernel" or value.ndim < 2:
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(value.ndim - 1)), value.ndim - 1)

    return jax.tree_util.tree_map_with_path(leaf, params)


def make_optimizer(config: TrainingConfig) -> optax.GradientTransformation:
    """Return clipping by global norm, then AdamW or Muon with the schedule.

    `clip_norm` has no effect on the kernels that Muon updates: the length of their gradients does not count.
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
