"""Saved models: an Orbax checkpoint of the parameters, and a JSON file with metadata (the model card)."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from l2l_jax.errors import UserError
from l2l_jax.models.base import Params
from l2l_jax.utils.checkpoints import Damaged, alone, check_sizes, check_space, read_arrays, record_sizes
from l2l_jax.utils.io import atomic_folder, tree_hash
from l2l_jax.utils.multihost import on_primary

CARD = "model.json"
# Types of the metadata values that other modules read
CARD_TYPES = {"family": str, "model": dict, "parts": list, "data": dict, "source": dict, "run": dict}


def save_model(
    folder: pathlib.Path, params: Params, card: dict[str, Any], *, beside: Mapping[str, bytes] | None = None
) -> None:
    """Write parameters and `card`, JSON-serializable metadata, to `folder`, replacing its content.

    The folder is written atomically. With several processes, only one writes, and all return when it is done.
    `beside` holds the content of additional files, by name.
    """

    def write() -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        check_space(folder.parent, params, reserve=True)
        with atomic_folder(folder.absolute()) as unfinished:
            with ocp.Checkpointer(_handler(), multiprocessing_options=alone()) as checkpointer:
                checkpointer.save(unfinished / "params", params)
            record_sizes(unfinished / "params")
            text = json.dumps(card, indent=2, default=dataclasses.asdict)
            (unfinished / CARD).write_text(text + "\n", "utf-8")
            for name, content in (beside or {}).items():
                (unfinished / name).write_bytes(content)

    on_primary(write)


def _handler() -> ocp.PyTreeCheckpointHandler:
    """Return a handler that saves every array in separate files, with little additional memory.

    By default, Orbax copies all NumPy arrays first in case they change during writing, which does not happen
    here, and assembles one file for all arrays (OCDBT) in memory.
    """
    numpy_handler = ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)
    registry = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, numpy_handler), (jax.Array, ocp.type_handlers.ArrayHandler())
    )
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, type_handler_registry=registry)
    # The default would look for OCDBT files to merge, and warn that there are none.
    handler.finalize = lambda directory: None
    return handler


def read_card(folder: pathlib.Path) -> dict[str, Any]:
    """Return the metadata of a saved model; raise a UserError if it is missing or cannot be read."""
    path = folder / CARD
    if not path.is_file():
        raise UserError(
            f"{folder} is not a saved model: it has no {CARD}. Name a folder that an earlier run wrote, such "
            "as runs/digits_mae/pretrained."
        )
    try:
        card = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged and cannot be read ({error}).") from error
    if not isinstance(card, dict):
        raise UserError(f"{path} is damaged: it should hold a JSON object.")
    for name, kind in CARD_TYPES.items():
        if name in card and not isinstance(card[name], kind):
            raise UserError(f"{path} is damaged: {name} is {card[name]!r}.")
    return card


def load_params(folder: pathlib.Path, like: Params) -> Params:
    """Load the parameters of a saved model as host arrays.

    Raises:
      UserError: The model is damaged, or its parts or shapes differ from `like`, a tree of arrays or shapes.
    """
    read_card(folder)
    cpu = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=cpu), like)
    try:
        check_sizes(folder / "params")
        params = read_arrays(folder.absolute() / "params", target)
    except Damaged as error:
        raise UserError(f"The model in {folder} is damaged or does not fit config.model ({error}).") from None
    return jax.device_get(params)


def fingerprint(params: Params, parts: Sequence[str]) -> str:
    """Return the `tree_hash` of some parts."""
    return tree_hash({part: params[part] for part in parts})
