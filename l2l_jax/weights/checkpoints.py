"""Conversion of checkpoints to models: family of a state dict, model fields, and parameters."""

import contextlib
import dataclasses
import functools
import operator
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import pydantic
from flax.traverse_util import flatten_dict

from l2l_jax.errors import UserError
from l2l_jax.models import mapping
from l2l_jax.models.base import FAMILIES, Model, Params
from l2l_jax.models.mapping import CheckpointFormat, StateDict
from l2l_jax.weights.reading import Checkpoint, read_checkpoint


@dataclasses.dataclass(frozen=True)
class Recognized:
    """A checkpoint of a known family; the keys of its arrays are those of the format's table."""

    family: str
    format: CheckpointFormat
    state_dict: StateDict
    origin: Mapping[str, Any]

    @functools.cached_property
    def sizes(self) -> dict[str, Any]:
        """Model fields inferred from shapes."""
        return self.format.sizes(self.state_dict)

    @property
    def licence(self) -> str:
        """License of the weights, if known."""
        return self.format.licence(self.origin["file"]) or "See where the file comes from."

    def variant(self) -> str | None:
        """Return the name of the published model with these sizes, or None."""
        for name, fields in self.format.published.items():
            model = build(self.family, fields).canonical()
            if all(getattr(model, field) == value for field, value in self.sizes.items()):
                return name
        return None

    def known_fields(self) -> dict[str, Any]:
        """Return the fields from a published model, from the checkpoint, or inferred from shapes."""
        variant, published = self.variant(), dict[str, Any]()
        if variant is not None:
            published |= self.format.published[variant]
            model = build(self.family, published)
            published |= {name: getattr(model, name) for name in self.format.hidden}
        return {**published, **self.format.stated(self.origin, self.sizes), **self.sizes}

    def certain_fields(self) -> dict[str, Any]:
        """Return the known fields that another model must share to load the weights."""
        stated = _flat(self.format.stated(self.origin, self.sizes))
        needed = {*self.format.hidden, *stated} & {*FAMILIES[self.family].TRAINED_WITH}
        return {name: x for name, x in _flat(self.known_fields()).items() if name in {*self.sizes, *needed}}

    def fields(self) -> dict[str, Any]:
        """Return the known fields, and guesses for others."""
        return {**self.format.guessed(self.origin, self.sizes), **self.known_fields()}

    def unknown(self) -> tuple[str, ...]:
        """Return the fields that must be specified because they are not known and cannot be guessed."""
        known = self.known_fields()
        return tuple(name for name in self.format.hidden if name not in known)

    def model(self, given: Mapping[str, Any]) -> tuple[Model, dict[str, Any]]:
        """Return the model with the `given` fields, and the fields that were guessed.

        Raises:
          UserError: A required field is missing, or a given field contradicts the weights.
        """
        for name, value in given.items():
            if self.sizes.get(name, value) != value:
                raise UserError(f"{name} is {self.sizes[name]} in the weights, not {value}.")
        unknown = [name for name in self.unknown() if name not in given]
        if unknown:
            sizes = ", ".join(f"{name} {value}" for name, value in self.sizes.items())
            options = " ".join(f"--set {name}=…" for name in unknown)
            raise UserError(
                f"this {self.family} model has no published size ({sizes}), and its weights do not show "
                f"{', '.join(unknown)}: add {options}"
            )
        model = build(self.family, {**self.fields(), **given})
        settled = {*_flat(self.known_fields()), *given, "value_range"}  # the range is a convention of l2l_jax
        return model, {name: field(model, name) for name in model.TRAINED_WITH if name not in settled}

    def params(self, model: Model) -> Params:
        """Return the parameters of the checkpoint in float32; raise a UserError if they do not fit."""
        computed = self.format.computed(self.state_dict, model, self.origin)
        target = part_shapes(model, self.format.parts)
        stored = mapping.to_flax(self.format.table, self.state_dict, target, model)
        return as_floats(stored, target) | computed


def field(model: Model, name: str) -> Any:
    """Return a field of a model, or a nested field such as "unet.heads"."""
    return operator.attrgetter(name)(model)


def _flat(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten nested fields, with names such as "section.field"."""
    return flatten_dict(dict(fields), sep=".")


def open_checkpoint(
    path: pathlib.Path, *, ema: bool = False, vqgan: pathlib.Path | None = None
) -> Checkpoint:
    """Read a checkpoint; add the state dict of MAGE's VQGAN if it is stored in a separate file."""
    first = read_checkpoint(path, ema=ema)
    if vqgan is None:
        return first
    second = read_checkpoint(vqgan)
    with about(path):
        joined = recognize(first.state_dict, first.origin).format.join(first.state_dict, second.state_dict)
    return dataclasses.replace(first, state_dict=joined, vqgan=second)


def recognize(state_dict: StateDict, origin: Mapping[str, Any]) -> Recognized:
    """Find the family of a state dict by its keys."""
    for family in FAMILIES:
        for kind in FAMILIES[family].FORMATS:
            if kind.recognize(state_dict):
                return Recognized(family, kind, kind.unwrap(state_dict), origin)
    if state_dict and all(key.endswith(("/down", "/up", "/delta")) for key in state_dict):
        raise UserError(
            "this is an adapter, not a model: merge it into the one that it was trained on, with python -m "
            "l2l_jax.weights export FOLDER --adapter FILE --output FILE."
        )
    names = {key.partition(".")[0] for key in state_dict if "." in key}
    if len(names) == 1 and all("." in key for key in state_dict):  # the attribute of a Lightning module
        with contextlib.suppress(UserError):
            return recognize({key.partition(".")[2]: x for key, x in state_dict.items()}, origin)
    families, keys = ", ".join(FAMILIES), mapping.listing(sorted(state_dict), 4)
    raise UserError(f"these are not weights of {families}: the keys are {keys}.")


def open_recognized(
    path: pathlib.Path, *, ema: bool = False, vqgan: pathlib.Path | None = None
) -> tuple[Checkpoint, Recognized]:
    """Open a checkpoint and find its family; see `open_checkpoint` and `recognize`."""
    source = open_checkpoint(path, ema=ema, vqgan=vqgan)
    with about(path):
        return source, recognize(source.state_dict, source.origin)


def build(family: str, fields: Mapping[str, Any]) -> Model:
    """Return the model of a family with these fields after validating them."""
    cls = FAMILIES[family]
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for name in fields:
        if name not in names:
            raise UserError(f"a {family} model has no field {name}; known: {', '.join(names)}.")
    try:
        return pydantic.TypeAdapter(cls).validate_python(dict(fields))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = f"{first['loc'][0]}: " if first["loc"] else ""
        raise UserError(f"no {family} model of these sizes: {where}{first['msg']}.") from error


def part_shapes(model: Model, parts: tuple[str, ...]) -> Params:
    """Return the shapes of some parts of the parameters."""
    try:
        shapes = model.shapes()
    except (ValueError, TypeError, ArithmeticError) as error:
        reason, family = " ".join(str(error).split())[:160], FAMILIES.name_of(type(model))
        raise UserError(f"no {family} model of these sizes can be built ({reason}).") from error
    return {part: shapes[part] for part in parts}


def as_floats(params: Params, target: Params) -> Params:
    """Cast parameters to the wider dtypes of `target`; raise a UserError if they are not finite floats."""

    def widen(path: Any, value: np.ndarray, like: Any) -> np.ndarray:
        name = "/".join(str(key.key) for key in path)
        if value.dtype not in mapping.FLOATS.values():
            raise UserError(f"{name} is {value.dtype}; expected {', '.join(mapping.FLOATS)}.")
        not_finite = value.size - np.count_nonzero(np.isfinite(value))
        if not_finite:
            raise UserError(
                f"{name} holds NaN or infinite values ({not_finite:,} of {value.size:,}): the training "
                "diverged, or the file is damaged. Use another checkpoint."
            )
        return value if value.dtype == like.dtype else value.astype(like.dtype)

    return jax.tree_util.tree_map_with_path(widen, params, target)


@contextlib.contextmanager
def about(path: pathlib.Path) -> Iterator[None]:
    """Prefix the message of a UserError with the name of the file or folder."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
