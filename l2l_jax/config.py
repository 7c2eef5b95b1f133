"""The experiment's configuration: frozen dataclasses, checked against a recipe before any work."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic

from l2l_jax.audit.config import AuditConfig
from l2l_jax.data.config import DataConfig, Share
from l2l_jax.errors import UserError
from l2l_jax.evals.config import EvaluationConfig
from l2l_jax.evals.tasks import budget_task
from l2l_jax.losses import NoiseKind
from l2l_jax.methods.adapters import AdapterKind
from l2l_jax.methods.base import METHODS
from l2l_jax.methods.registry import all_options, make_task
from l2l_jax.methods.targets import BLUR, TargetKind
from l2l_jax.models.base import Model
from l2l_jax.models.registry import FAMILIES, VARIANTS
from l2l_jax.train.optim import TrainingConfig
from l2l_jax.train.parallel import ParallelKind
from l2l_jax.train.sharding import MeshConfig

MethodName = Literal[tuple(METHODS)]  # type: ignore

BANKED_METHODS: tuple[str, ...] = ("encoder", "whole")
"""The methods that show noise to a teacher."""


@dataclasses.dataclass(frozen=True)
class UnlearningConfig(TrainingConfig):
    """How to unlearn: the fields of `TrainingConfig`, and

    Attributes:
      method: "encoder", the paper's; one that it is compared with: "max_loss", "noisy_label",
        "retain_label" or "random_encoder", see `l2l_jax.methods.baselines`; "epsilon", the paper's
        losses as constrained optimisation, see `l2l_jax.methods.constrained`; or one that changes the
        whole model: "whole", "undo" or "relearn_aware", see `l2l_jax.methods.deep`.
      alpha: weight of the forget term; 0.25 in the paper.
      epsilon_ratio: of "epsilon", in place of alpha: r in [0, 1]; 0 forgets most, 1 costs least.
      noise: of "encoder", "epsilon", "whole" and "undo": the noise shown to the teacher in place of forget
        images: "normal" (mean and standard deviation of the batch's pixels), "uniform" or "constant".
      target: of "undo" and "relearn_aware": what forget images are to be restored as: "noise", "blur" or
        "mean", see `l2l_jax.methods.targets`.
      target_blur: of the target "blur": its standard deviation as a share of the image's side.
      perturb, perturb_encoder: of "undo": share of fresh weights in the start of the decoder, and of the
        encoder, 0 to 1.
      feature_weight: of "undo": weight of the paper's forget loss, which takes from the encoder's features
        what a new decoder could find there.
      forget_every: of "undo": one in so many forget images of a batch is used.
      distill: of "undo": weight of the original model's predictions against the truth, 0 to 1.
      attack_steps: of "relearn_aware": simulated steps of an attacker.
      attack_rate: of "relearn_aware": change of every weight in one of them.
      retain_budget: what forgetting may cost: the error in the mask of retain validation images relative to
        the original model's, such as 1.1. alpha is then where the weight of the forget term starts; it
        follows the budget from there, and the best model inside the budget is kept (see docs/guides).
        None, or 0 for command lines, which cannot say None: alpha is fixed and the last model is kept.
      budget_original: of a budget: the model that errors are relative to, and that is imitated on retain
        images, as in `config.model.pretrained`. Empty: the model that is unlearned; if that was itself
        unlearned, the first of its line.
      budget_every: of a budget: steps between measurements.
      budget_images: validation images of each set that are measured; fewer if there are not so many.
      budget_rate: how fast the weight moves: a ratio one per cent beside the budget changes it by about as
        many per cent.
      token_bank: of "encoder" and "whole" on models with a tokenizer: augmented views of each image whose
        codes are computed before the first step, after which no pixels are read; 0: images are tokenised in
        every step. See `l2l_jax.train.token_cache`.
      noise_bank: the same for so many of the teacher's noise images; `token_bank` needs it.
      saliency: of any method: share of the trained weights, those with the largest gradient of the forget
        loss, that may change; 1: all, see `l2l_jax.methods.saliency`.
      saliency_reset: start from fresh values of these weights.
      adapter: of methods that start from the original weights: train a small adapter beside them, "lora"
        (low-rank factors of the kernels) or "norms" (scales and biases of norms), see
        `l2l_jax.methods.adapters`; "": the weights themselves.
      adapter_rank: of "lora": columns of the factors.
    """

    method: MethodName = "encoder"  # type: ignore[valid-type]
    alpha: Annotated[float, pydantic.Field(ge=0)] = 0.25
    epsilon_ratio: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.5
    noise: NoiseKind = "normal"
    target: TargetKind = "noise"
    target_blur: Annotated[float, pydantic.Field(gt=0)] = BLUR
    perturb: Annotated[float, pydantic.Field(ge=0, le=1)] = 1.0
    perturb_encoder: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.0
    feature_weight: Annotated[float, pydantic.Field(ge=0)] = 0.0
    forget_every: Annotated[int, pydantic.Field(ge=1)] = 1
    distill: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.5
    attack_steps: Annotated[int, pydantic.Field(ge=1)] = 1
    attack_rate: Annotated[float, pydantic.Field(gt=0)] = 1e-3
    retain_budget: Annotated[
        Annotated[float, pydantic.Field(ge=1)] | None, pydantic.BeforeValidator(lambda given: given or None)
    ] = None
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

    def __post_init__(self):
        super().__post_init__()
        if self.retain_budget is not None and not self.weight:
            field = "epsilon_ratio is 1" if self.method == "epsilon" else "alpha is 0"
            raise ValueError(f"{field}: a retain_budget cannot move a weight of forgetting that starts at 0")
        if self.batch_size % self.batch_parts:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of accumulate × forget_every = "
                f"{self.batch_parts}"
            )
        if self.token_bank and not self.noise_bank:
            raise ValueError(
                "token_bank needs a noise_bank: where no pixels are read, noise has no statistics"
            )
        if self.banked and self.method not in BANKED_METHODS:
            raise ValueError(
                f"noise_bank is for the methods {' and '.join(BANKED_METHODS)}, not for {self.method!r}: "
                "set token_bank and noise_bank to 0"
            )

    @property
    def batch_parts(self) -> int:
        """See `TrainingConfig.batch_parts`."""
        return self.accumulate * (self.forget_every if self.method == "undo" else 1)

    @property
    def banked(self) -> tuple[str, ...]:
        """The sets of a batch that are codes from a bank."""
        return ("retain", "forget", "noise") if self.token_bank else ("noise",) if self.noise_bank else ()

    @property
    def weight(self) -> float:
        """The weight of the forget term, at first if there is a budget: alpha, or 1 − epsilon_ratio."""
        return 1 - self.epsilon_ratio if self.method == "epsilon" else self.alpha

    @property
    def options(self) -> dict[str, Any]:
        """The options of methods, for `l2l_jax.methods.registry.make_task`."""
        names = all_options()
        return {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name in names
        }


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole experiment.

    Attributes:
      seed: seed of everything random.
      family: the model family, a key of `l2l_jax.models.registry.FAMILIES`.
      model: the model, parameters excluded.
      pretrained: what to unlearn: folder of a saved model, a checkpoint file (see docs/guides), or the
        name of a model that comes with the package (`l2l_jax.shipped`); empty to pretrain a model in the
        workdir.
      pretrain: how each stage of `model.pretraining_stages()` is trained, by its name.
      data, unlearn, evaluate, audit: see their classes.
      mesh: how the devices are arranged.
      parallel: how a step runs on them: "jit", one program over the mesh, or "pmap", a copy per device.
    """

    seed: int
    family: str
    model: Model
    pretrained: str
    data: DataConfig
    pretrain: dict[str, TrainingConfig]
    unlearn: UnlearningConfig
    evaluate: EvaluationConfig
    audit: AuditConfig
    mesh: MeshConfig
    parallel: ParallelKind

    def describe(self, *sections: str) -> dict[str, Any]:
        """JSON-able values of the named sections, or of all."""
        names = sections or tuple(field.name for field in dataclasses.fields(self))
        return _plain({name: getattr(self, name) for name in names})


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain(v) for name, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value


SECTIONS = ("seed", "model", "data", "pretrain", "unlearn", "evaluate", "audit", "mesh", "parallel")
"""The fields of a recipe."""


def parse_config(recipe: Mapping[str, Any]) -> Config:
    """Check a recipe and turn it into a `Config`.

    Args:
      recipe: nested mapping with the sections seed, model, data, pretrain, unlearn and evaluate;
        `model` holds "family", "pretrained", the name of a published "variant" if it is to be one,
        and the fields of the family's model, which go before the variant's. "mesh", "parallel" and
        "audit" may be left out: all devices along "data", "jit", and no audit.

    Raises:
      UserError: a key that does not exist or is missing, or a value of the wrong type or range.
    """
    recipe = _mapping(recipe, "config")
    recipe = {"mesh": {}, "parallel": "jit", "audit": {}, **recipe}
    _check_keys(recipe, SECTIONS, "config", complete=True)
    model = dict(_mapping(recipe["model"], "config.model"))
    family = model.pop("family", None)
    if family not in FAMILIES:
        raise UserError(f"config.model.family is {family!r}; known: {', '.join(FAMILIES)}.")
    pretrained = model.pop("pretrained", "")
    variant = model.pop("variant", "")
    if variant:
        if variant not in VARIANTS[family]:
            known = ", ".join(VARIANTS[family]) or "none"
            raise UserError(f"config.model.variant is {variant!r}; variants of {family}: {known}.")
        model = VARIANTS[family][variant] | model
    model = _section(FAMILIES[family], model, "config.model")
    stages = tuple(stage.name for stage in model.pretraining_stages())
    pretrain = _mapping(recipe["pretrain"], "config.pretrain")
    _check_keys(pretrain, stages, "config.pretrain", complete=True)
    config = Config(
        seed=_check(Annotated[int, pydantic.Field(ge=0, lt=2**31)], recipe["seed"], "config.seed"),
        family=family,
        model=model,
        pretrained=_check(str, pretrained, "config.model.pretrained"),
        data=_section(DataConfig, recipe["data"], "config.data"),
        pretrain={
            stage: _section(TrainingConfig, pretrain[stage], f"config.pretrain.{stage}") for stage in stages
        },
        unlearn=_section(UnlearningConfig, recipe["unlearn"], "config.unlearn"),
        evaluate=_section(EvaluationConfig, recipe["evaluate"], "config.evaluate"),
        audit=_section(AuditConfig, recipe["audit"], "config.audit"),
        mesh=_section(MeshConfig, recipe["mesh"], "config.mesh"),
        parallel=_check(ParallelKind, recipe["parallel"], "config.parallel"),
    )
    try:
        config.evaluate.check(config.model)
        if config.unlearn.retain_budget is not None:
            budget_task(config.evaluate.tasks)
    except ValueError as error:
        raise UserError(f"config.evaluate: {error}.") from None
    reason = config.model.why_no_codes
    if config.unlearn.banked and reason:
        raise UserError(
            f"config.unlearn.noise_bank and token_bank keep a tokenizer's codes, but {reason}: set both to 0."
        )
    try:
        make_task(config.unlearn.method, config.model, **config.unlearn.options)
    except ValueError as error:
        raise UserError(f"config.unlearn: {error}.") from None
    return config


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if not isinstance(value, Mapping):
        raise UserError(f"{where} must be a section with fields, not {value!r}.")
    return value


def _check_keys(given: Mapping[str, Any], known: tuple[str, ...], where: str, complete: bool = False) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {where}.{near[0]}?" if near else f"Known: {', '.join(known)}."
            raise UserError(f"{where}.{name} does not exist. {hint}")
    missing = [name for name in known if name not in given]
    if missing and complete:
        raise UserError(f"The recipe lacks {', '.join(f'{where}.{name}' for name in missing)}.")


def _section(cls: type, given: Any, where: str) -> Any:
    given = _mapping(given, where)
    _check_keys(given, tuple(field.name for field in dataclasses.fields(cls)), where)
    return _check(cls, given, where)


def _check(kind: Any, value: Any, where: str) -> Any:
    try:
        return pydantic.TypeAdapter(kind).validate_python(value)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        names = [part for part in first["loc"] if isinstance(part, str) and part not in ("str", "int")]
        field = ".".join([where, *(name for name in names if name.isidentifier() or "." in name)])
        if first["type"] == "missing":
            raise UserError(f"{field} is missing.") from None
        if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            raise UserError(f"{field} does not exist.") from None
        message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
        given = "" if first["type"] == "value_error" else f" is {first['input']!r}, but"
        raise UserError(f"{field}{given or ':'} {message}.") from None
