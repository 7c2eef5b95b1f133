"""Config of an experiment: frozen dataclasses, validated before any work starts."""

import dataclasses
import importlib
import os
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import pydantic

from l2l_jax.audit.config import RENAMED as RENAMED_IN_AUDIT
from l2l_jax.audit.config import AuditConfig, audit_config_class
from l2l_jax.config_files import RawConfig, as_raw_config, nearest
from l2l_jax.data.class_names import named_classes
from l2l_jax.data.config import DataConfig
from l2l_jax.errors import UserError
from l2l_jax.evals.config import EvaluationConfig
from l2l_jax.evals.fast import FilterConfig
from l2l_jax.evals.tasks import budget_task
from l2l_jax.methods import METHODS
from l2l_jax.models.base import FAMILIES, Model
from l2l_jax.train.optim import TrainingConfig
from l2l_jax.train.parallel import ParallelKind
from l2l_jax.train.sharding import MeshConfig
from l2l_jax.train.unlearning_config import UnlearningConfig
from l2l_jax.utils.text import Text
from l2l_jax.weights.loading import locate, stored_fields


@dataclasses.dataclass(frozen=True)
class Config:
    """The config of an experiment.

    Attributes:
      seed: Global random seed.
      family: Name of a registered model family.
      model: The model, without its parameters.
      pretrained: Model to unlearn: folder of a saved model, a checkpoint file (see docs/guides), or the name
        of a model included in the package (`l2l_jax.shipped`); empty to pretrain one in the workdir.
      pretrain: Training config of each phase in `model.pretraining_stages()`, by its name.
      data, unlearn, evaluate, audit, filter: See their classes.
      mesh: Shape of the device mesh.
      parallel: "jit" for one program over the mesh, or "pmap" for a copy of the step per device.
      plugins: Modules that register methods, model families or attacks; imported before the config is parsed.
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
    filter: FilterConfig = FilterConfig()
    parallel: ParallelKind = "jit"
    plugins: tuple[str, ...] = ()

    def describe(self, *sections: str) -> dict[str, Any]:
        """Return the named sections, or all sections, as JSON-serializable values."""
        return _plain({name: getattr(self, name) for name in sections or _fields(Config)})


def _plain(value: Any) -> Any:
    if isinstance(value, UnlearningConfig):
        fields = {name: getattr(value, name) for name in _fields(type(value)) if name != "methods"}
        return _plain(fields | {value.method: value.options})
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain(v) for name, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value


def parse_config(raw: Mapping[str, Any]) -> Config:
    """Validate a raw config, fill in defaults and return a `Config`.

    Args:
      raw: Nested mapping of sections and fields; missing fields get their defaults. `model` holds "family",
        "pretrained", the name of a published "variant", and fields of the family's model, which override the
        variant's.

    Raises:
      UserError: A field does not exist, is missing or has an invalid value.
    """
    raw = as_raw_config(raw)
    plugins = _check(tuple[str, ...], _split(raw.get("plugins", ())), "config.plugins")
    for name in plugins:
        _import_plugin(name)
    _check_keys(raw, ("model", *(name for name in _fields(Config) if name not in MODEL_FIELDS)), "config")
    model_fields = _mapping(raw.get("model", {}), "config.model")
    family, model = _model(model_fields)
    data = _section(DataConfig, raw.get("data", {}), "config.data")
    model = model.for_classes(named_classes(*data.forget, *data.retain))
    unlearn, audit = _unlearning(raw.get("unlearn", {})), _audit(raw.get("audit", {}))
    config = Config(
        seed=_check(Annotated[int, pydantic.Field(ge=0, lt=2**31)], raw.get("seed", 0), "config.seed"),
        family=family,
        model=model,
        pretrained=_check(str, model_fields.get("pretrained", ""), "config.model.pretrained"),
        data=data,
        pretrain=_pretrain(raw, model),
        unlearn=unlearn,
        evaluate=_section(EvaluationConfig, raw.get("evaluate", {}), "config.evaluate"),
        audit=audit,
        mesh=_section(MeshConfig, raw.get("mesh", {}), "config.mesh"),
        filter=_section(FilterConfig, raw.get("filter", {}), "config.filter"),
        parallel=_check(ParallelKind, raw.get("parallel", "jit"), "config.parallel"),
        plugins=plugins,
    )
    _check_together(config)
    return config


MODEL_FIELDS = ("family", "pretrained")  # fields of `Config` that are in the section `model` of a raw config


def _model(given: Mapping[str, Any]) -> tuple[str, Model]:
    """Return the family's name and the model of a section `model`.

    Given fields override those stored with `pretrained`, which override those of `variant`.
    """
    fields = {name: value for name, value in given.items() if name not in MODEL_FIELDS}
    pretrained, family = str(given.get("pretrained", "")), str(given.get("family", ""))
    own_family, stored, hidden = family, dict[str, Any](), tuple[str, ...]()
    if pretrained and locate(pretrained).exists():  # otherwise loading raises the error
        own_family, stored, hidden = stored_fields(pretrained)
        family = family or own_family
    if family not in FAMILIES:
        raise UserError(f"config.model.family is {family!r}; known: {', '.join(FAMILIES)}.")
    if stored and own_family != family:
        raise UserError(f"{pretrained}: this is a {own_family} model, but config.model.family is {family}.")
    variants, variant = FAMILIES[family].VARIANTS, str(fields.pop("variant", ""))
    if variant and variant not in variants:
        names = ", ".join(variants) or "none"
        raise UserError(f"config.model.variant is {variant!r}; variants of {family}: {names}.")
    fields = _merged(variants.get(variant, {}), stored, fields)
    unknown = [name for name in hidden if name not in fields]
    if unknown:
        flags = " ".join(f"--config.model.{name}=…" for name in unknown)
        raise UserError(f"{pretrained}: its weights do not show {', '.join(unknown)}: give {flags}")
    return family, _section(FAMILIES[family], fields, "config.model")


def _merged(*sections: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested sections; later ones override earlier ones."""
    merged: dict[str, Any] = {}
    for section in sections:
        for name, value in section.items():
            inner = merged.get(name)
            is_section = isinstance(value, Mapping) and isinstance(inner, Mapping)
            merged[name] = _merged(inner, value) if is_section else value  # type: ignore[arg-type]
    return merged


def _pretrain(raw: Mapping[str, Any], model: Model) -> dict[str, TrainingConfig]:
    """Return the training config of each pretraining phase; optional unless a model is trained."""
    stages = [stage.name for stage in model.pretraining_stages()]
    given = _mapping(raw.get("pretrain", {}), "config.pretrain")
    _check_keys(given, stages, "config.pretrain")
    why = None
    if not raw["model"].get("pretrained"):
        why = "config.model.pretrained is empty"
    elif "train" in _split(raw.get("audit", {}).get("retrained", ())):
        why = "config.audit.retrained is train"
    pretrain = {}
    for stage in stages:
        where, fields = f"config.pretrain.{stage}", given.get(stage, {})
        pretrain[stage] = _section(TrainingConfig, fields, where)
        if why is not None and "steps" not in fields:
            raise UserError(f"{why}, so a model is trained: give {where}.steps, or name a saved model.")
    return pretrain


def _unlearning(given: Any) -> UnlearningConfig:
    """Parse the section `unlearn`, in which the options of each method are a section of its name."""
    where = "config.unlearn"
    fields = dict(_mapping(given, where))
    methods = {
        name: _section(METHODS[name], fields.pop(name), f"{where}.{name}")
        for name in METHODS
        if name in fields
    }
    try:
        method = METHODS[str(fields.get("method", UnlearningConfig.method))]
    except UserError as error:
        raise UserError(f"{where}.method: {error}") from None
    if "methods" in fields:
        raise UserError(f"{where}.methods does not exist: the options of a method are a section of its name.")
    for name in fields:
        owners = [owner for owner in METHODS if name in _fields(METHODS[owner])]
        if owners:
            owner = METHODS.name_of(method) if METHODS.name_of(method) in owners else owners[0]
            raise UserError(f"{where}.{name} is an option of a method: name it {where}.{owner}.{name}.")
    defaults = dict(method.training)
    if "steps" in fields and "first_cycle" not in fields:  # take exactly this number of steps
        defaults["first_cycle"] = 0
        if str(fields["steps"]).isdecimal() and "warmup_steps" in defaults:
            defaults["warmup_steps"] = min(defaults["warmup_steps"], int(fields["steps"]) // 10)
    return _section(UnlearningConfig, {**defaults, **fields, "methods": methods}, where)


def _audit(given: Any) -> AuditConfig:
    """Parse the section `audit`, in which the options of each attack are a section of its name."""
    where = "config.audit"
    for name in _mapping(given, where):
        if name in RENAMED_IN_AUDIT:
            new = " and ".join(f"{where}.{path}" for path in RENAMED_IN_AUDIT[name])
            raise UserError(f"{where}.{name} is an option of attacks: name it {new}.")
    return _section(audit_config_class(), given, where)


def _fields(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _check_together(config: Config) -> None:
    """Raise a UserError if sections that are valid on their own are incompatible."""
    try:
        config.evaluate.check(config.model)
        if config.unlearn.retain_budget is not None:
            budget_task(config.evaluate.tasks)
    except ValueError as error:
        raise UserError(f"config.evaluate: {error}.") from None
    if config.data.canaries and config.pretrained:
        raise UserError(
            "config.data.canaries marks images before the original model is trained, but "
            f"config.model.pretrained is {config.pretrained!r}, which is trained: leave out the canaries, or "
            "have a model trained in this run by --config.model.pretrained=''."
        )
    reason = config.model.why_no_codes
    if config.unlearn.banked and reason:
        raise UserError(f"config.unlearn.noise_bank and token_bank keep codes, but {reason}: set both to 0.")
    try:
        config.unlearn.objective(config.model)
    except ValueError as error:
        raise UserError(f"config.unlearn: {error}.") from None


def upgrade(stored: Mapping[str, Any]) -> RawConfig:
    """Return the raw config stored from `Config.describe`, by this version or an earlier one.

    Raises:
      UserError: The stored config is damaged.
    """
    try:
        return _upgraded(dict(stored))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"A run's stored config is damaged ({type(error).__name__}: {error}).") from error


def _upgraded(stored: dict[str, Any]) -> RawConfig:
    # Before 0.2, the options of methods and of attacks were fields of `unlearn` and `audit`.
    for name in stored.get("plugins", ()):
        _import_plugin(name)
    model = {"family": stored.pop("family"), "pretrained": stored.pop("pretrained", "")}
    given = stored.get("unlearn", {})
    method = given.get("method", UnlearningConfig.method)
    unlearn = {name: given[name] for name in given if name in (*_fields(UnlearningConfig), *METHODS)}
    options = {k: given[k] for k in given if k in _fields(METHODS[method]) and k not in unlearn}
    if options:
        unlearn[method] = options
    given = stored.get("audit", {})
    audit = {name: value for name, value in given.items() if name not in RENAMED_IN_AUDIT}
    for name in RENAMED_IN_AUDIT.keys() & given.keys():
        for path in RENAMED_IN_AUDIT[name]:
            attack, option = path.split(".")
            audit[attack] = {**audit.get(attack, {}), option: given[name]}
    return stored | {"model": model | dict(stored["model"]), "unlearn": unlearn, "audit": audit}


def _import_plugin(name: str) -> None:
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # like `python -m`, for the command l2l-jax
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise UserError(f"config.plugins names {name!r}, which cannot be imported: {error}.") from error


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{where} must be a section with fields, not {value!r}.")
    return value


def _check_keys(given: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    for name in given:
        if name not in known:
            raise UserError(f"{where}.{name} does not exist. {nearest(name, known, f'{where}.')}")


def _section(cls: type, given: Any, where: str) -> Any:
    """Parse a section into a dataclass; its fields that are dataclasses are nested sections."""
    given = _mapping(given, where)
    hints = get_type_hints(cls, include_extras=True)
    _check_keys(given, _fields(cls), where)
    values = {}
    for name, value in given.items():
        nested, hint = dataclasses.is_dataclass(hints[name]), hints[name]
        values[name] = _section(hint, value, f"{where}.{name}") if nested else _typed(value, hint)
    if isinstance(given.get("steps"), Text) and not isinstance(given.get("warmup_steps"), Text):
        steps, warmup = values["steps"], values.get("warmup_steps", 0)
        if steps.isdecimal() and warmup >= int(steps) > 0:  # the user has lowered only the steps
            values["warmup_steps"] = int(steps) - 1
    return _check(cls, values, where)


def _typed(value: Any, hint: Any) -> Any:
    """Convert text from the command line to a value that pydantic can parse as the field's type."""
    if not isinstance(value, Text):
        return value
    kinds = list(_kinds(hint))
    if type(None) in kinds and value.lower() in ("none", ""):
        return None
    elements = next((get_args(kind) for kind in kinds if get_origin(kind) is tuple), None)
    if elements is None:
        return str(value)
    allowed = set(_kinds(elements[0]))  # names, especially of classes, may contain commas and brackets
    if str in allowed and (allowed == {str, int} or not value.bracketed):
        return (str(value),) if value else ()
    return value.elements()


def _kinds(hint: Any) -> Iterator[Any]:
    """Yield the types that a type hint allows, without annotations."""
    if get_origin(hint) is Annotated:
        yield from _kinds(get_args(hint)[0])
    elif get_origin(hint) in (Union, types.UnionType):
        for kind in get_args(hint):
            yield from _kinds(kind)
    else:
        yield hint


def _split(value: Any) -> Any:
    """Return the elements of a field given as a tuple or as comma-separated text."""
    return Text(value).elements() if isinstance(value, str) else value


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
        message = first["msg"].removeprefix("Value error, ").removeprefix("Input ").rstrip(".")
        end = "" if message.endswith("?") else "."
        given = "" if first["type"] == "value_error" else f" is {first['input']!r}, but"
        raise UserError(f"{field}{given or ':'} {message}{end}") from None
