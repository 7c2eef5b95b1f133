"""The config of unlearning."""

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
    """Settings of unlearning: the fields of `TrainingConfig` and these.

    Attributes:
      method: Name of a registered method. Its options are the section of that name, such as
        `config.unlearn.undo`.
      alpha: Weight of the forget term; 0.25 in the paper.
      retain_budget: Largest masked MSE on retain validation images, relative to the original model's, such as
        1.1. The weight of the forget term then starts at alpha and follows the budget, and the best model
        inside the budget is kept (see docs/guides). None or 0: alpha is fixed and the last model is kept.
      first_cycle: Steps of the first of several cycles, each twice as long as the one before, in which the
        learning rate rises and falls (Loshchilov & Hutter 2017, "SGDR"). A run with a retain budget ends with
        the first cycle after which the budget is met and the forget error has settled, at the latest after
        `steps`; one without, after the first cycle. 0: one cycle of all steps, as if `steps` alone is given.
      budget_original: Model that errors are relative to and that is imitated on retain images, as in
        `config.model.pretrained`. Empty: the model that is unlearned; if that was itself unlearned, the first
        of its line.
      budget_every: Steps between measurements of the budget.
      budget_images: Validation images of each set that are measured; fewer if there are not so many.
      budget_rate: Speed of the weight: an error one percent beside the budget changes it by about as many
        percent.
      token_bank: Augmented views of each image whose codes are computed before the first step, for methods
        that show noise to a teacher on models with a tokenizer or VAE; no pixels are read afterwards. 0:
        codes are computed in every step. See `l2l_jax.train.token_cache`.
      noise_bank: Number of the teacher's noise images whose codes are computed before the first step;
        `token_bank` needs it. In latent diffusion each view has its own noise image instead, and this is 0.
      saliency: Share of the trained weights, those with the largest gradient of the forget loss, that may
        change; 1: all, see `l2l_jax.methods.restrictions`.
      saliency_reset: Start from fresh values of these weights.
      adapter: Small adapter to train beside the original weights: "lora" (low-rank factors of the kernels) or
        "norms" (scales and biases of norms), see `l2l_jax.models.adapters`; "": train the weights.
      adapter_rank: Rank of "lora".
      adapter_layers: Kernels that "lora" adapts: "all", those of "attention", or "attention+convolution".
      methods: Options of methods, by name; those that are missing have their defaults.
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
                f"{self.options.weight_option} gives the weight 0: a retain_budget cannot move a weight of "
                "forgetting that starts at 0"
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
        """Lengths of the cycles in which the learning rate rises and falls; the last one takes the rest."""
        lengths: list[int] = []
        length, left = self.first_cycle or self.steps, self.steps
        while left >= length or not lengths:
            lengths.append(min(length, left))
            left, length = left - lengths[-1], 2 * length
        return (*lengths[:-1], lengths[-1] + left)

    @property
    def options(self) -> Method:
        """The method and its options."""
        return self.methods[self.method] if self.method in self.methods else METHODS[self.method]()

    def replace(self, **changes: Any) -> "UnlearningConfig":
        """Return a copy with changed fields, or changed options of its method."""
        method = changes.get("method", self.method)
        options = self.methods[method] if method in self.methods else METHODS[method]()
        names = {field.name for field in dataclasses.fields(options)} & changes.keys()
        own = {name: changes.pop(name) for name in names}
        methods = {**self.methods, method: dataclasses.replace(options, **own)}
        return dataclasses.replace(self, methods=methods, **changes)

    def objective(self, model: Model) -> Objective:
        """Return what a training step does on a model.

        Raises:
          ValueError: These settings do not go together on this model.
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
        """Number of parts of equal size that the rows of a device are split into."""
        return self.accumulate * self.options.batch_divisor

    @property
    def banked(self) -> tuple[str, ...]:
        """The sets of a batch that are codes from a bank."""
        return ("retain", "forget", "noise") if self.token_bank else ("noise",) if self.noise_bank else ()

    @property
    def weight(self) -> float:
        """The weight of the forget term, at first if there is a budget."""
        return self.options.initial_weight(self.alpha)
