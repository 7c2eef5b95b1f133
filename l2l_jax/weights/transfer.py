"""Checkpoints in, checkpoints out, and what they are: the work of the command line."""

import collections
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from l2l_jax.errors import UserError
from l2l_jax.models import mapping
from l2l_jax.models.base import FAMILIES
from l2l_jax.weights import adapters, writing
from l2l_jax.weights.checkpoints import about, build, open_checkpoint, open_recognized, part_shapes, recognize
from l2l_jax.weights.saved_models import CARD, load_params, read_card, save_model


def import_checkpoint(
    path: pathlib.Path,
    output: pathlib.Path,
    *,
    ema: bool = False,
    vqgan: pathlib.Path | None = None,
    fields: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Turn a checkpoint into a saved model (see `l2l_jax.weights.saved_models`).

    Args:
      path: The file or Hugging Face folder.
      output: Folder to create.
      ema: Take the moving average of the weights.
      vqgan: File of MAGE's VQGAN, if `path` does not hold it.
      fields: Fields of the model that the weights do not show.

    Returns:
      The card of the saved model; "assumed" are fields that were guessed.

    Raises:
      UserError: The output exists, or the checkpoint cannot be read or does not fit; nothing is written.
    """
    if output.exists():
        raise UserError(f"{output} exists. Choose another --output, or delete it first.")
    source, found = open_recognized(path, ema=ema, vqgan=vqgan)
    with about(path):
        model, assumed = found.model(fields or {})
        params = found.params(model)
    card = {
        "family": found.family,
        "variant": found.variant(),
        "model": model.as_fields(),
        "origin": f"imported from {path.name}",
        "source": source.facts(),
        "licence": found.licence,
        "parts": list(found.format.parts),
        "assumed": assumed,
    }
    save_model(output, params, card)
    return card


def export_model(
    folder: pathlib.Path, output: pathlib.Path, dtype: str = "float32", *, adapter: pathlib.Path | None = None
) -> dict[str, Any]:
    """Write a saved model as a checkpoint that the original PyTorch code loads strictly.

    Args:
      folder: A saved model: imported, or `pretrained` or `unlearned` of a workdir.
      output: File to create, `.pth` (or `.pt`, `.ckpt`, `.bin`) or `.safetensors`; without suffix, a Hugging
        Face folder, of families that have one.
      dtype: Number format of the floating-point arrays, a key of `l2l_jax.models.mapping.FLOATS`.
      adapter: File of an adapter that was trained on this model, to be merged into it.

    Returns:
      The card of the saved model.

    Raises:
      UserError: No saved model, one that this version cannot build, an adapter of another model, or an output
        that exists.
    """
    card = read_card(folder) if (folder / CARD).is_file() else {}
    family = card.get("family", "")
    formats = FAMILIES[family].FORMATS if family in FAMILIES else ()
    folders = [kind for kind in formats if kind.folder is not None]
    writing.check_output(output, folders=bool(folders))
    card = read_card(folder)
    if not formats:
        raise UserError(
            f"{folder} holds a {family} model, which has no PyTorch format; known: {_with_formats()}."
        )
    model = build(family, card["model"])
    shapes = model.shapes()
    params = load_params(folder, {part: shapes[part] for part in card.get("parts", shapes)})
    if adapter is not None:
        params = adapters.with_adapter(adapter, params, family, model)
    kind = formats[0] if output.suffix else folders[0]
    weights = {part: params[part] for part in kind.parts}
    state_dict = mapping.to_torch(kind.table, weights, model, mapping.FLOATS[dtype])
    if kind.folder is None:
        writing.write_checkpoint(output, state_dict, kind.wrapper)
    elif output.suffix:
        raise UserError(f"--output {output}: a Hugging Face folder has no suffix.")
    else:
        writing.write_folder(output, kind.folder(state_dict, model, card.get("source", {})))
    return card


def _with_formats() -> str:
    return ", ".join(family for family in FAMILIES if FAMILIES[family].FORMATS)


def inspect(
    path: pathlib.Path,
    *,
    ema: bool = False,
    vqgan: pathlib.Path | None = None,
    fields: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Return facts about a checkpoint or a saved model, as text by heading; nothing is imported.

    Args:
      path: The file or folder.
      ema: As for `import_checkpoint`.
      vqgan: As for `import_checkpoint`.
      fields: As for `import_checkpoint`.

    Raises:
      UserError: It cannot be read at all. What can be read and not imported is described, with the reason.
    """
    if (path / CARD).is_file():
        return {key: _text(value) for key, value in read_card(path).items()}
    adapter = adapters.read_card(path)
    if adapter is not None:
        size = f"{path.name}, {path.stat().st_size / 1e6:,.2f} MB, merged into its model by export --adapter"
        return {"file": size, **{key: _text(value) for key, value in adapter.items()}}
    source = open_checkpoint(path, ema=ema, vqgan=vqgan)
    assert source.file is not None
    total = sum(file.stat().st_size for file in source.file.files)
    arrays = list(source.state_dict.values())
    kinds = collections.Counter(str(array.dtype) for array in arrays)
    counts = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
    facts = {
        "file": f"{path.name}, {source.file.kind}, {total / 1e6:,.1f} MB",
        "sha256": source.file.sha256(),
        "holds": ", ".join(name or "state dict" for name in source.file.copies),
        "arrays": f"{len(arrays)} with {sum(math.prod(array.shape) for array in arrays):,} values: {counts}",
    }
    if source.file.left_out:
        facts["left out"] = mapping.listing(source.file.left_out)
    try:
        found = recognize(source.state_dict, source.origin)
        facts |= {"family": found.family, "variant": found.variant() or "no published size"}
        model, assumed = found.model(fields or {})
        told = dict.fromkeys((*found.sizes, *model.TRAINED_WITH))
        facts["model"] = _text({name: getattr(model, name) for name in told})
        facts["assumed"] = _text(assumed) or "nothing"
        fit = mapping.fit(found.format.table, found.state_dict, part_shapes(model, found.format.parts))
    except UserError as error:
        return facts | {"import": f"not possible: {error}"}
    facts["missing"] = mapping.listing(fit.missing)
    facts["unexpected"] = mapping.listing(fit.unexpected)
    facts["licence"] = found.licence
    if not fit.complaint():
        return facts | {"import": "possible"}
    if fit.misshapen:
        facts["misshapen"] = mapping.listing(
            f"{key} {got}, not {want}" for key, (got, want) in fit.misshapen.items()
        )
    return facts | {"import": "not possible: it must hold exactly what the model needs"}


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={inner}" for key, inner in value.items())
    return str(value)
