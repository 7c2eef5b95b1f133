"""Adapters on disk: a small safetensors file that names the weights to which it belongs."""

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
CARD = "l2l_jax adapter"  # key of the card in the metadata of a file


def adapter_bytes(adapter: Adapter, card: Mapping[str, Any]) -> bytes:
    """Return the content of an adapter's file.

    The card holds JSON-able facts: "family", "model" (its fields), "adapter" (kind), "adapter_rank",
    "adapter_layers", "method" and "base", the `fingerprint` of the parts that it was trained on.
    """
    flat = {name: np.ascontiguousarray(x) for name, x in flatten_dict(dict(adapter), sep="/").items()}
    return safetensors.numpy.save(flat, metadata={CARD: json.dumps(dict(card))})


def read_card(path: pathlib.Path) -> dict[str, Any] | None:
    """Return the card of an adapter's file, or None if it is not such a file."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            card = json.loads((file.metadata() or {}).get(CARD, "null"))
    except (OSError, ValueError, safetensors.SafetensorError):
        return None
    return card if isinstance(card, dict) else None


def with_adapter(path: pathlib.Path, params: Params, family: str, model: Model) -> Params:
    """Return weights with the adapter in a file added; see `read_adapter`."""
    return merged(params, read_adapter(path, params, family, model))


def read_adapter(path: pathlib.Path, params: Params, family: str, model: Model) -> Adapter:
    """Return the adapter in a file, which was trained on these weights.

    Raises:
      UserError: The file holds no adapter, or one of other weights.
    """
    card = read_card(path)
    if card is None:
        raise UserError(f"{path} is not an adapter; expected a file {FILE} that a run wrote.")
    if card.get("family") != family:
        raise UserError(f"{path} is an adapter of a {card.get('family')} model, not of a {family} model.")
    found = fingerprint(params, model.generative_parts)
    if card.get("base") != found:
        facts = card.get("original_weights")
        facts = facts if isinstance(facts, Mapping) else {}
        told = [f"{name} {facts[name]}" for name in ("origin", "sha256") if name in facts]
        raise UserError(
            f"{path} belongs to other weights: it was trained on those with the fingerprint "
            f"{str(card.get('base'))[:16]}…, and these have {found[:16]}…. Give the model that was unlearned "
            f"({', '.join(told) or 'unknown'})."
        )
    with safetensors.safe_open(path, framework="numpy") as file:
        flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no dict)
    adapter = unflatten_dict(flat, sep="/")
    adapted_parts = {part: params[part] for part in params if part in adapter}
    takes = takes_lora(model, card.get("adapter_layers", "all"))
    try:
        kind = card["adapter"], card["adapter_rank"]
        wanted = jax.eval_shape(lambda: new_adapter(adapted_parts, *kind, jax.random.key(0), takes))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: its card does not describe an adapter of this model ({error}).") from error
    shapes = [jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree) for tree in (adapter, wanted)]
    if shapes[0] != shapes[1]:
        raise UserError(f"{path} is damaged: its arrays are not those that its card describes.")
    return adapter
