"""Storage of adapters: a small safetensors file that identifies the weights it was trained on."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from l2l_jax.errors import UserError
from l2l_jax.models.adapters import Adapter, merged, new_adapter, takes_lora
from l2l_jax.models.base import Model, Params
from l2l_jax.weights.saved_models import fingerprint

FILE = "adapter.safetensors"  # name of the file next to the unlearned model
CARD = "l2l_jax adapter"  # key of our metadata in the safetensors header


def adapter_bytes(adapter: Adapter, card: Mapping[str, Any]) -> bytes:
    """Return the content of an adapter file.

    `card` is JSON-serializable metadata: "family", "model" (its fields), "adapter" (kind), "adapter_rank",
    "adapter_layers", "method" and "base", the `fingerprint` of the parts that the adapter was trained on.
    """
    flat = {name: np.ascontiguousarray(x) for name, x in flatten_dict(dict(adapter), sep="/").items()}
    return safetensors.numpy.save(flat, metadata={CARD: json.dumps(dict(card))})


def read_card(path: pathlib.Path) -> dict[str, Any] | None:
    """Return the metadata of an adapter file, or None if it is not an adapter file."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            card = json.loads((file.metadata() or {}).get(CARD, "null"))
    except (OSError, ValueError, safetensors.SafetensorError):
        return None
    return card if isinstance(card, dict) else None


def with_adapter(path: pathlib.Path, params: Params, family: str, model: Model) -> Params:
    """Return weights with the adapter from a file added; see `read_adapter`."""
    return merged(params, read_adapter(path, params, family, model))


def read_adapter(path: pathlib.Path, params: Params, family: str, model: Model) -> Adapter:
    """Read an adapter that was trained on these weights.

    Raises:
      UserError: The file is not an adapter, or it belongs to other weights.
    """
    card = read_card(path)
    if card is None:
        raise UserError(f"{path} is not an adapter; expected a file {FILE} that a run wrote.")
    if card.get("family") != family:
        raise UserError(f"{path} is an adapter of a {card.get('family')} model, not of a {family} model.")
    base = fingerprint(params, model.generative_parts)
    if card.get("base") != base:
        original = card.get("original_weights")
        original = original if isinstance(original, Mapping) else {}
        parts = [f"{name} {original[name]}" for name in ("origin", "sha256") if name in original]
        raise UserError(
            f"{path} belongs to other weights: it was trained on those with the fingerprint "
            f"{str(card.get('base'))[:16]}…, and these have {base[:16]}…. Give the model that was unlearned "
            f"({', '.join(parts) or 'unknown'})."
        )
    with safetensors.safe_open(path, framework="numpy") as file:
        flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no dict)
    adapter = unflatten_dict(flat, sep="/")
    adapted_parts = {part: params[part] for part in params if part in adapter}
    takes = takes_lora(model, card.get("adapter_layers", "all"))
    try:
        kind = card["adapter"], card["adapter_rank"]
        expected = jax.eval_shape(lambda: new_adapter(adapted_parts, *kind, jax.random.key(0), takes))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: its metadata does not describe such an adapter ({error}).") from error
    shapes = [jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree) for tree in (adapter, expected)]
    if shapes[0] != shapes[1]:
        raise UserError(f"{path} is damaged: its arrays do not match its metadata.")
    return adapter
