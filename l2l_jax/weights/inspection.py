"""What a checkpoint file is, told from names and shapes: nothing is imported."""

import collections
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from l2l_jax.errors import UserError
from l2l_jax.weights import mapping
from l2l_jax.weights.adapter_files import read_adapter_card
from l2l_jax.weights.families import recognise
from l2l_jax.weights.saved_models import CARD, read_card
from l2l_jax.weights.transfer import open_checkpoint


def inspect_path(
    path: pathlib.Path,
    *,
    ema: bool = False,
    vqgan: pathlib.Path | None = None,
    fields: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Facts about a checkpoint file or the folder of a saved model, as text by heading.

    Args:
      path: the file or folder.
      ema, vqgan, fields: as for `l2l_jax.weights.transfer.import_file`.

    Raises:
      UserError: it cannot be read at all. What can be read and not imported is described, with the
        reason.
    """
    if (path / CARD).is_file():
        return _texts(read_card(path))
    adapter = read_adapter_card(path)
    if adapter is not None:
        size = f"{path.name}, {path.stat().st_size / 1e6:,.2f} MB"
        return {"file": f"{size}, merged into its model by export --adapter", **_texts(adapter)}
    source = open_checkpoint(path, ema=ema, vqgan=vqgan)
    arrays = list(source.state_dict.values())
    kinds = collections.Counter(str(array.dtype) for array in arrays)
    values = sum(math.prod(array.shape) for array in arrays)
    facts = {
        "file": f"{path.name}, {source.facts['format']}, {path.stat().st_size / 1e6:,.1f} MB",
        "sha256": source.facts["sha256"],
        "holds": ", ".join(name or "state dict" for name in source.copies),
        "arrays": f"{len(arrays)} with {values:,} values: "
        + ", ".join(f"{number} {kind}" for kind, number in kinds.most_common()),
    }
    try:
        family = recognise(source.state_dict)
        facts["family"] = family.name
        variant, model = family.infer(source.state_dict, path.name, fields or {})
        facts["variant"] = variant or "no published size"
        told = dict.fromkeys((*family.sizes(source.state_dict), *family.trained_with))
        facts["model"] = _text({name: getattr(model, name) for name in told})
        state_dict = family.unwrap(source.state_dict, model)
        fit = mapping.fit(family.table, state_dict, family.target(model))
    except UserError as error:
        return facts | {"import": f"not possible: {error}"}
    facts["missing"] = mapping.listing(fit.missing)
    facts["unexpected"] = mapping.listing(fit.unexpected)
    facts["licence"] = family.licence
    if not fit.complaint():
        return facts | {"import": "possible"}
    if fit.misshapen:
        shapes = [f"{key} {got}, not {want}" for key, (got, want) in fit.misshapen.items()]
        facts["misshapen"] = mapping.listing(shapes)
    return facts | {"import": "not possible: it must hold exactly what the model needs"}


def _texts(card: Mapping[str, Any]) -> dict[str, str]:
    return {key: _text(value) for key, value in card.items()}


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={inner}" for key, inner in value.items())
    return str(value)
