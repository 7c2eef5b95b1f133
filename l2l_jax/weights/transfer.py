"""Checkpoint files in, checkpoint files out: what the command line and `config.model.pretrained` do."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from l2l_jax import shipped
from l2l_jax.errors import UserError
from l2l_jax.models.base import Model, Params
from l2l_jax.models.mage import convert as mage
from l2l_jax.weights import adapter_files, arrays, files, mapping
from l2l_jax.weights.families import KNOWN, Family, recognise
from l2l_jax.weights.saved_models import load_params, read_card, save_model


@dataclasses.dataclass(frozen=True)
class OpenCheckpoint:
    """A state dict and where it comes from.

    Attributes:
      state_dict: arrays by key, without wrappers.
      facts: JSON-able: name, SHA-256 and format of the file, and which copy in it was taken.
      copies: names of all the copies in it.
    """

    state_dict: Mapping[str, Any]
    facts: dict[str, Any]
    copies: tuple[str, ...]


def open_checkpoint(
    path: pathlib.Path, *, ema: bool = False, vqgan: pathlib.Path | None = None
) -> OpenCheckpoint:
    """The state dict in a checkpoint file, its VQGAN's file added if there is one.

    Raises:
      UserError: see `files.open_checkpoint`, `files.CheckpointFile.choose`, `mage.with_vqgan`.
    """
    file = files.open_checkpoint(path)
    name = file.choose(ema)
    state_dict: Mapping[str, Any] = file.copies[name]
    facts: dict[str, Any] = {"file": path.name, "sha256": files.sha256(path), "format": file.kind}
    if name:
        facts["copy"] = name
    if vqgan is not None:
        added = open_checkpoint(vqgan)
        with about(path):
            state_dict = mage.with_vqgan(state_dict, added.state_dict)
        facts["vqgan"] = added.facts
    return OpenCheckpoint(state_dict, facts, tuple(file.copies))


def read_params(source: OpenCheckpoint, family: Family, model: Model) -> Params:
    """The parameters that a checkpoint holds, float32, by part; `family.other_parts` are not there.

    Raises:
      UserError: the weights do not fit the model, or are not float32, float16 or bfloat16.
    """
    target = family.target(model)
    state_dict = family.unwrap(source.state_dict, model)
    return as_floats(mapping.to_flax(family.table, state_dict, target, model), target)


def as_floats(params: Params, target: Params) -> Params:
    """The parameters in the number formats of `target`, which hold every value of theirs.

    Raises:
      UserError: arrays that are not float32, float16 or bfloat16.
    """

    def widen(path: Any, value: np.ndarray, like: Any) -> np.ndarray:
        if value.dtype not in arrays.FLOATS.values():
            name = "/".join(str(key.key) for key in path)
            raise UserError(f"{name} is {value.dtype}; {arrays.FLOATS_WANTED}.")
        return value if value.dtype == like.dtype else value.astype(like.dtype)

    return jax.tree_util.tree_map_with_path(widen, params, target)


def import_file(
    path: pathlib.Path,
    output: pathlib.Path,
    *,
    ema: bool = False,
    vqgan: pathlib.Path | None = None,
    fields: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Turn a checkpoint file into a saved model (see `l2l_jax.weights.saved_models`).

    Args:
      path: the file.
      output: folder to make.
      ema: take the moving average of the weights.
      vqgan: file of MAGE's VQGAN, if `path` does not hold it.
      fields: fields of the model that the weights do not show.

    Returns:
      The card of the saved model.

    Raises:
      UserError: the output exists, or the file cannot be read or does not fit; nothing is written.
    """
    if output.exists():
        raise UserError(f"{output} exists. Choose another --output, or delete it first.")
    source = open_checkpoint(path, ema=ema, vqgan=vqgan)
    with about(path):
        family = recognise(source.state_dict)
        variant, model = family.infer(source.state_dict, path.name, fields or {})
        params = read_params(source, family, model)
    card = {
        "family": family.name,
        "variant": variant,
        "model": dataclasses.asdict(model),
        "origin": f"imported from {path.name}",
        "source": source.facts,
        "licence": family.licence,
        "parts": list(family.parts),
    }
    save_model(output, params, card)
    return card


def load_pretrained(path: pathlib.Path, family_name: str, model: Model) -> Params:
    """All parts of the original model that `config.model.pretrained` names.

    Args:
      path: folder of a saved model (imported, or of an earlier run), or a checkpoint file.
      family_name: the family that the config asks for.
      model: the model that the config asks for.

    Raises:
      UserError: another family or another model lies there, or nothing that can be read.
    """
    family = KNOWN[family_name]
    if not path.exists():
        raise UserError(
            f"config.model.pretrained={path} does not exist; it should be a folder of a saved model, such as "
            "runs/digits_mae/pretrained, a checkpoint file, or a shipped model: "
            f"{', '.join(shipped.names())}."
        )
    if path.parent == shipped.FOLDER:
        card = shipped.card(path.stem)
        with about(path):
            _check_family(card["family"], family_name)
            _check_sizes(family.build(card["model"]), model, family.parts)
            return read_params(open_checkpoint(path), family, model) | family.other_parts(model)
    if not path.is_dir():
        source = open_checkpoint(path)
        with about(path):
            _check_family(recognise(source.state_dict).name, family_name)
            sizes = family.sizes(source.state_dict)
            variant = family.variant(sizes)
            if variant is not None:
                published = family.build(family.published[variant])
                visible = [name for name in family.hidden if name in family.trained_with]
                sizes |= {name: getattr(published, name) for name in visible}
            _check_fields(sizes, family.canonical(model))
            params = read_params(source, family, model)
        return params | family.other_parts(model)
    card = read_card(path)
    with about(path):
        _check_family(card.get("family"), family_name)
        saved = family.build(card.get("model", {}))
        _check_fields({name: getattr(saved, name) for name in family.trained_with}, model)
    shapes = model.shapes()
    parts = card.get("parts", list(shapes))
    try:
        params = load_params(path, {part: shapes[part] for part in parts})
    except UserError:
        with about(path):
            _check_sizes(saved, model, parts)
        raise
    others = {} if len(parts) == len(shapes) else family.other_parts(model)
    return params | others


@contextlib.contextmanager
def about(path: pathlib.Path) -> Iterator[None]:
    """Put the name of the file or folder before what is said against it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _check_family(found: Any, wanted: str) -> None:
    if found is None:
        raise UserError("its model.json does not name the model's family: the folder is damaged.")
    if found != wanted:
        raise UserError(f"this is a {found} model, but config.model.family is {wanted}.")


def _check_fields(found: Mapping[str, Any], model: Model) -> None:
    for name, value in found.items():
        wanted = getattr(model, name)
        if value != wanted:
            raise UserError(
                f"this model has {name}={value}, but config.model.{name} is {wanted}. Make them agree, "
                "or name other weights."
            )


def _check_sizes(saved: Model, model: Model, parts: Sequence[str]) -> None:
    """Name the first field, if any, by which the shapes of these parts differ."""

    def shapes(candidate: Model) -> Params:
        whole = candidate.shapes()
        return {part: whole[part] for part in parts}

    wanted = shapes(model)
    if shapes(saved) == wanted:
        return
    for field in dataclasses.fields(saved):
        own = getattr(saved, field.name)
        with contextlib.suppress(ValueError):  # no model has these sizes
            if shapes(dataclasses.replace(model, **{field.name: own})) == wanted:
                continue
        _check_fields({field.name: own}, model)


def original_weights(path: pathlib.Path) -> dict[str, Any]:
    """JSON-able facts about the weights that lie in a folder or file: origin, SHA-256 and licence.

    A model that was trained here comes from no file and has no SHA-256. Of one that was unlearned before,
    the facts hold those of its own original under "original_weights".

    Raises:
      UserError: it cannot be read.
    """
    if path.parent == shipped.FOLDER:
        card = shipped.card(path.stem)
        facts = {name: card[name] for name in ("sha256", "trained_on", "seed", "licence")}
        return {"origin": f"the shipped model {path.stem}", **facts}
    if not path.is_dir():
        source = open_checkpoint(path)
        family = recognise(source.state_dict)
        return {"origin": f"read from {path.name}", **source.facts, "licence": family.licence}
    card = read_card(path)
    facts = {"origin": card.get("origin", "unknown"), **card.get("source", {})}
    return facts | {name: card[name] for name in ("licence", "original_weights") if name in card}


def export_model(
    folder: pathlib.Path, output: pathlib.Path, dtype: str = "float32", *, adapter: pathlib.Path | None = None
) -> dict[str, Any]:
    """Write a saved model as a checkpoint that the original PyTorch code loads strictly.

    Args:
      folder: a saved model: imported, or `pretrained` or `unlearned` of a workdir.
      output: file to make, `.pth` (or `.pt`, `.ckpt`, `.bin`) or `.safetensors`.
      dtype: number format of the floating-point arrays, a key of `arrays.FLOATS`.
      adapter: file of an adapter that was trained on this model, to be merged into it.

    Returns:
      The card of the saved model.

    Raises:
      UserError: no saved model, one that this version cannot build, an adapter of another model, or an
        output that exists.
    """
    files.check_output(output)
    card = read_card(folder)
    family = KNOWN.get(card.get("family", ""))
    if family is None:
        raise UserError(f"{folder} holds a {card.get('family')} model; known: {', '.join(KNOWN)}.")
    model = family.build(card["model"])
    shapes = model.shapes()
    params = load_params(folder, {part: shapes[part] for part in card.get("parts", shapes)})
    if adapter is not None:
        params = adapter_files.with_adapter(adapter, params, family.name, model)
    weights = {part: params[part] for part in family.parts}
    wanted = arrays.FLOATS[dtype]
    state_dict = {
        key: value.astype(wanted, copy=False) if value.dtype.kind == "f" else value
        for key, value in mapping.to_torch(family.table, weights, model).items()
    }
    state_dict = family.wrap(state_dict, model)  # what it adds, such as noise schedules, keeps its precision
    files.write_checkpoint(output, state_dict, family.wrapper)
    return card
