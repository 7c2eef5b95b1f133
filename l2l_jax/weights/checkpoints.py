"""Checkpoints as models: the family of a state dict, the fields that it implies, and its parameters."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import pydantic

from l2l_jax.errors import UserError
from l2l_jax.models import mapping
from l2l_jax.models.base import FAMILIES, Model, Params
from l2l_jax.models.checkpoints import CheckpointFormat
from l2l_jax.weights.reading import CheckpointFile, read_checkpoint


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A state dict, what its file says besides, and the copy in the file that was taken."""

    state_dict: Mapping[str, Any]
    origin: dict[str, Any]
    file: CheckpointFile | None = None
    copy: str = ""
    vqgan: "Checkpoint | None" = None

    def facts(self) -> dict[str, Any]:
        """Return JSON-able facts: name, SHA-256 and format of the file, and the copy that was taken."""
        if self.file is None:
            return {}
        facts: dict[str, Any] = {
            "file": self.file.path.name,
            "sha256": self.file.sha256(),
            "format": self.file.kind,
        }
        facts |= {key: self.origin[key] for key in ("config", "preprocessor") if key in self.origin}
        if self.copy:
            facts["copy"] = self.copy
        if self.file.left_out:
            left_out = mapping.listing(self.file.left_out, 3)
            facts["left_out"] = f"{len(self.file.left_out)} arrays: {left_out}"
        return facts | ({"vqgan": self.vqgan.facts()} if self.vqgan else {})


@dataclasses.dataclass(frozen=True)
class Recognized:
    """A checkpoint of a known family; its arrays have the keys of the format's table."""

    family: str
    format: CheckpointFormat
    state_dict: Mapping[str, Any]
    origin: dict[str, Any]

    @property
    def sizes(self) -> dict[str, Any]:
        """Fields of the model that shapes show."""
        return self.format.sizes(self.state_dict)

    @property
    def licence(self) -> str:
        """The licence of the weights, as far as it is known."""
        return self.format.licence(self.origin["file"]) or "See where the file comes from."

    def variant(self) -> str | None:
        """Return the name of the published model of these sizes, if there is one."""
        shown = self.sizes
        for name, fields in self.format.published.items():
            model = build(self.family, fields).canonical()
            if all(getattr(model, field) == value for field, value in shown.items()):
                return name
        return None

    def known_fields(self) -> dict[str, Any]:
        """Return the fields that shapes show, that the checkpoint states, or that a published model has."""
        published = self.format.published.get(self.variant() or "", {})
        return {**published, **self.format.stated(self.origin, self.sizes), **self.sizes}

    def fields(self) -> dict[str, Any]:
        """Return the known fields, and guesses of others."""
        return {**self.format.guessed(self.origin, self.sizes), **self.known_fields()}

    def unknown(self) -> tuple[str, ...]:
        """Return the fields that must be given, because nothing shows them and they cannot be guessed."""
        known = self.known_fields()
        return () if self.variant() else tuple(name for name in self.format.hidden if name not in known)

    def model(self, given: Mapping[str, Any]) -> tuple[Model, dict[str, Any]]:
        """Return the model with the `given` fields, and those of its fields that were guessed.

        Raises:
          UserError: A field that must be given is not, or a given one contradicts the weights.
        """
        sizes, known = self.sizes, self.known_fields()
        for name, value in given.items():
            if name in sizes and sizes[name] != value:
                raise UserError(f"{name} is {sizes[name]} in the weights, not {value}.")
        unknown = [name for name in self.unknown() if name not in given]
        if unknown:
            told = ", ".join(f"{name} {value}" for name, value in sizes.items())
            options = " ".join(f"--set {name}=…" for name in unknown)
            raise UserError(
                f"this {self.family} model has no published size ({told}), and its weights do not show "
                f"{', '.join(unknown)}: add {options}"
            )
        model = build(self.family, {**self.fields(), **given})
        settled = {*known, *given, "value_range"}  # the range of the images is our own convention
        assumed = [name for name in model.TRAINED_WITH if name not in settled]
        return model, {name: getattr(model, name) for name in assumed}

    def params(self, model: Model) -> Params:
        """Return the parameters that the checkpoint holds, float32; if they do not fit, raise a UserError."""
        target = part_shapes(model, self.format.parts)
        return as_floats(mapping.to_flax(self.format.table, self.state_dict, target, model), target)


def open_checkpoint(
    path: pathlib.Path, *, ema: bool = False, vqgan: pathlib.Path | None = None
) -> Checkpoint:
    """Return the state dict of a checkpoint, that of MAGE's VQGAN added if it is in a file of its own."""
    file = read_checkpoint(path)
    name = file.choose(ema)
    state_dict: Mapping[str, Any] = file.copies[name]
    added = None
    if vqgan is not None:
        added = open_checkpoint(vqgan)
        with about(path):
            join = recognize(state_dict, file.origin).format.join
            if join is None:
                raise UserError("a second file, --vqgan, belongs to MAGE.")
            state_dict = join(state_dict, added.state_dict)
    return Checkpoint(state_dict, file.origin, file, name, added)


def recognize(state_dict: Mapping[str, Any], origin: Mapping[str, Any]) -> Recognized:
    """Find the family of a state dict by its keys."""
    for family in FAMILIES:
        for kind in FAMILIES[family].FORMATS:
            if kind.recognize(state_dict):
                return Recognized(family, kind, kind.unwrap(state_dict), dict(origin))
    if state_dict and all(key.endswith(("/down", "/up", "/delta")) for key in state_dict):
        raise UserError(
            "this is an adapter, not a model: merge it into the one that it was trained on, with python -m "
            "l2l_jax.weights export FOLDER --adapter FILE --output FILE."
        )
    families = ", ".join(FAMILIES)
    raise UserError(
        f"these are not weights of {families}: the keys are {mapping.listing(sorted(state_dict), 4)}."
    )


def open_recognized(
    path: pathlib.Path, *, ema: bool = False, vqgan: pathlib.Path | None = None
) -> tuple[Checkpoint, Recognized]:
    """Open a checkpoint and find its family; see `open_checkpoint` and `recognize`."""
    source = open_checkpoint(path, ema=ema, vqgan=vqgan)
    with about(path):
        return source, recognize(source.state_dict, source.origin)


def build(family: str, fields: Mapping[str, Any]) -> Model:
    """Return the model of a family with these fields, checked."""
    cls = FAMILIES[family]
    known = cls.field_names()
    for name in fields:
        if name not in known:
            raise UserError(f"a {family} model has no field {name}; known: {', '.join(known)}.")
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
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"no {FAMILIES.name_of(type(model))} model of these sizes can be built ({reason})."
        ) from error
    return {part: shapes[part] for part in parts}


def as_floats(params: Params, target: Params) -> Params:
    """Widen finite parameters to the number formats of `target`; others raise a UserError."""

    def widen(path: Any, value: np.ndarray, like: Any) -> np.ndarray:
        name = "/".join(str(key.key) for key in path)
        if value.dtype not in mapping.FLOATS.values():
            raise UserError(f"{name} is {value.dtype}; expected are {', '.join(mapping.FLOATS)}.")
        finite = np.isfinite(value)
        if not finite.all():
            broken = finite.size - int(finite.sum())
            raise UserError(
                f"{name} holds NaN or infinite values ({broken:,} of {finite.size:,}): the training "
                "diverged, or the file is damaged. Use another checkpoint."
            )
        return value if value.dtype == like.dtype else value.astype(like.dtype)

    return jax.tree_util.tree_map_with_path(widen, params, target)


@contextlib.contextmanager
def about(path: pathlib.Path) -> Iterator[None]:
    """Put the name of the file or folder before the message of a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
