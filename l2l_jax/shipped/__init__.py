"""Small models shipped with the package, such as "digits_mae", and models retrained without the forget set.

Each model is a safetensors file in half precision, in the published format of its family, with a JSON file of
metadata. `python -m tools.make_shipped --config=configs/digits_mae.py` recreates the models of a config.
"""

import json
import pathlib
from typing import Any

from l2l_jax.errors import UserError

FOLDER = pathlib.Path(__file__).parent
RETRAINED = "_retrained"  # name suffix of models that were trained without the classes to forget


def names() -> tuple[str, ...]:
    """Return the names of shipped models, which `config.model.pretrained` accepts."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.safetensors")))


def resolved(given: str) -> pathlib.Path:
    """Return the file of a shipped model if a name is given, otherwise the given path."""
    return FOLDER / f"{given}.safetensors" if given in names() else pathlib.Path(given)


def card(name: str) -> dict[str, Any]:
    """Return the metadata of a shipped model, or raise a UserError if there is none with this name."""
    if name not in names():
        raise UserError(f"There is no shipped model {name!r}; available: {', '.join(names())}.")
    return json.loads((FOLDER / f"{name}.json").read_text())
