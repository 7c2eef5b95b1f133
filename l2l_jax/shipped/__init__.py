"""Small models that come with the package, so that nobody waits for a pretrained one.

For each digits recipe there is the model that saw all ten digits, such as "digits_mae", and its twin
"digits_mae_retrained" that was trained without the classes to forget: the audit's gold standard. Each is a
safetensors file in half precision, in the published layout of its family, with a card beside it (recipe,
seed, commit, SHA-256, figures). `python -m tools.make_shipped --config=configs/digits_mae.py` remakes both.
"""

import json
import pathlib
from typing import Any

from l2l_jax.errors import UserError

FOLDER = pathlib.Path(__file__).parent

RETRAINED = "_retrained"
"""Ending of the name of a model that was trained without the classes to forget."""


def names() -> tuple[str, ...]:
    """Return the names that `config.model.pretrained` takes."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.safetensors")))


def resolved(given: str) -> pathlib.Path:
    """Return the file of a shipped model, given its name, or the given path."""
    return FOLDER / f"{given}.safetensors" if given in names() else pathlib.Path(given)


def card(name: str) -> dict[str, Any]:
    """Return the facts about a shipped model.

    Raises:
      UserError: There is no model of that name.
    """
    if name not in names():
        raise UserError(f"There is no shipped model {name!r}; there are: {', '.join(names())}.")
    return json.loads((FOLDER / f"{name}.json").read_text())
