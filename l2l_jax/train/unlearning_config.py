"""Config of unlearning."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import pydantic

from l2l_jax.data.transforms import Share
from l2l_jax.methods import METHODS, Method, Objective
from l2l_jax.methods.restrictions import adapt, restrict
from l2l_jax.models.adapters import AdapterKind, AdapterLayers, takes_lora
from l2l_jax.models.base import Model
from l2l_jax.train.optim import TrainingConfig


def _budget(given: object) -> object:
    return None if given in (None, 0, "0", "0.0") else given


@dataclasses.dataclass(frozen=True)
class UnlearningConfig(TrainingConfig):
    """Settings of unlearning, in addition to the fields of `TrainingConfig`.

    Attributes:
      method: Name of a registered method. Its options are the section of that name, such as
        `config.unlearn.undo`.
      alpha: Weight of the forget term; 0.25 in the paper.
      retain_budget: Largest masked MSE on retain validation images, relative to the original model, such as
        1.1. The weight of the forget term then starts at alpha and adapts to the budget, and the best model
        within the budget is kept (see docs/guides). None or 0: alpha is fixed and the last model is kept.
      first_cycle: Number of steps of the first of several learning rate cycles, each twice as long as the
        previous one (Loshchilov & Hutter 2017, "SGDR"). A run with a retain budget ends with the first cycle
        after which the budget is met and the forget error has settled, at the latest after `steps`; a run
        without a budget ends after the first cycle. 0 is a single cycle of all steps, as when only `steps` is
        given.
      budget_original: Reference model for errors, which is also imitated on retain images, as in
        `config.model.pretrained`. Empty for the model being unlearned or, if that was itself unlearned, the
        first original model of the sequence.
      budget_every: Number of steps between measurements of the budget.
      budget_images: Maximum number of validation images per set to measure.
      budget_rate: Rate of change of the weight: an error that is off the budget by one percent changes the
        weight by about this many percent.
      token_bank: Number of augmented views per image whose codes are computed before the first step, for
        methods with noise inputs of a teacher on models with a tokenizer or VAE; training then reads no
        pixels. 0: codes are computed in every step. See `l2l_jax.train.token_cache`.
      noise_bank: Number of the teacher's noise images whose codes are computed before the first step;
        required by `token_bank`. In latent diffusion, each view has its own noise image instead, and
        `noise_bank` must be 0.
      saliency: Share of the trained weights that may change, those with the largest gradients of the forget
        loss; 1: all weights, see `l2l_jax.methods.restrictions`.
      saliency_reset: Reinitialize these weights.
      adapter: Adapter to train while the original weights are fixed: "lora" (low-rank factors of the kernels)
        or "norms" (scales and biases of norms), see `l2l_jax.models.adapters`; "": train the weights.
      adapter_rank: Rank of "lora".
      adapter_layers: Kernels that "lora" adapts: "all", those of "attention", or "attention+convolution".
      methods: Options of methods by name; missing options have their defaults.
    """

    method: str = "encoder"
    alpha: Annotated[float, pydantic.Field(ge=0)] = 0.25
    retain_budget: Annotated[
        Annotated[float, pydantic.Field(ge=1)] | None, pydantic.BeforeValidator(_budget)
    ] = None
    first_cycle: Annotated[int, pydantic.Field(ge=0)] = 0
    budget_original: str = ""
    budget_every: Annotated[int, pydantic.Field(ge=1)] = 50
    budget_images: Annotated[int, pydantic.Field(ge=2)] = 200
    budget_rate: Annotated[float, pydantic.Field(gt=0)] = 6.0
    token_bank: Annotated[int, pydantic.Field(ge=0)] = 0
    noise_bank: Annotated[int, pydantic.Field(ge=0)] = 0
    saliency: Share = 1.0
    saliency_reset: bool = False
    adapter: AdapterKind = ""
    adapter_rank: Annotated[int, pydantic.Field(ge=1)] = 8
    adapter_layers: AdapterLayers = "all"
    methods: Mapping[str, pydantic.SkipValidation[Method]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        super().__post_init__()
        if self.retain_budget is not None and not self.weight:
            raise ValueError(
                f"{self.options.weight_option} gives the weight 0: a retain_budget cannot adapt a forget "
                "weight that starts at 0"
            )
        if self.first_cycle and self.warmup_steps >= self.cycles[0]:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} must be less than first_cycle {self.first_cycle}"
            )
        if self.batch_size % self.batch_parts:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of accumulate × forget_every = "
                f"{self.batch_parts}"
            )
        if self.banked and not self.options.takes_noise:
            names = " and ".join(name for name in METHODS if METHODS[name].takes_noise)
            raise ValueError(
                f"noise_bank is for the methods {names}, not for {self.method!r}: set token_bank and "
                "noise_bank to 0"
            )

    @property
    def cycles(self) -> tuple[int, ...]:
        """Return the lengths of the learning rate cycles; the last cycle takes the remaining steps."""
        lengths: list[int] = []
        length, left = self.first_cycle or self.steps, self.steps
        while left >= length or not lengths:
            lengths.append(min(length, left))
            left, length = left - lengths[-1], 2 * length
        return (*lengths[:-1], lengths[-1] + left)

    @property
    def options(self) -> Method:
        """Return the method with its options."""
        return self.methods[self.method] if self.method in self.methods else METHODS[self.method]()

    def replace(self, **changes: Any) -> "UnlearningConfig":
        """Return a copy with changed fields or changed options of its method."""
        method = changes.get("method", self.method)
        options = self.methods[method] if method in self.methods else METHODS[method]()
        names = {field.name for field in dataclasses.fields(options)} & changes.keys()
        own = {name: changes.pop(name) for name in names}
        methods = {**self.methods, method: dataclasses.replace(options, **own)}
        return dataclasses.replace(self, methods=methods, **changes)

    def objective(self, model: Model) -> Objective:
        """Return the objective of a training step on a model.

        Raises:
          ValueError: The settings are incompatible with each other or with the model.
        """
        if self.token_bank and not self.noise_bank and not model.codes_hold_draws:
            raise ValueError("token_bank needs a noise_bank: if no pixels are read, noise has no statistics")
        if self.noise_bank and model.codes_hold_draws:
            raise ValueError("noise_bank must be 0 for this family: its views have noise images of their own")
        objective = restrict(self.options.objective(model), model, self.saliency, reset=self.saliency_reset)
        if not self.adapter:
            return objective
        return adapt(objective, self.adapter, self.adapter_rank, takes_lora(model, self.adapter_layers))

    @property
    def batch_parts(self) -> int:
        """Return the number of equal parts into which the rows of a device are split."""
        return self.accumulate * self.options.batch_divisor

    @property
    def banked(self) -> tuple[str, ...]:
        """Return the sets of a batch that contain codes from a bank."""
        return ("retain", "forget", "noise") if self.token_bank else ("noise",) if self.noise_bank else ()

    @property
    def weight(self) -> float:
        """Return the weight of the forget term, or its initial value with a retain budget."""
        return self.options.initial_weight(self.alpha)
