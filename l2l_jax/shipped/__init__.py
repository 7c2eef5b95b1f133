"""Small models that come with the package, such as "digits_mae", and models retrained without the forget set.

Each is a safetensors file in half precision, in the published layout of its family, with a card beside it.
`python -m tools.make_shipped --config=configs/digits_mae.py` remakes a config's.
"""

import json
import pathlib
from typing import Any

from l2l_jax.errors import UserError

FOLDER = pathlib.Path(__file__).parent
RETRAINED = "_retrained"  # ending of the name of a model that was trained without the classes to forget


def names() -> tuple[str, ...]:
    """Return the names that `config.model.pretrained` takes."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.safetensors")))


def resolved(given: str) -> pathlib.Path:
    """Return the file of a shipped model, given its name, or the given path."""
    return FOLDER / f"{given}.safetensors" if given in names() else pathlib.Path(given)


def card(name: str) -> dict[str, Any]:
    """Return the facts about a shipped model, or raise a UserError if there is none of that name."""
    if name not in names():
        raise UserError(f"There is no shipped model {name!r}; there are: {', '.join(names())}.")
    return json.loads((FOLDER / f"{name}.json").read_text())
