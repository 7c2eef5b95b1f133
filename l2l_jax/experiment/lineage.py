"""Models that were unlearned one after another: which of them was the first."""

import pathlib

from l2l_jax import shipped
from l2l_jax.config import Config
from l2l_jax.errors import UserError
from l2l_jax.models.base import Params
from l2l_jax.utils.multihost import barrier
from l2l_jax.weights.saved_models import read_card
from l2l_jax.weights.transfer import load_pretrained


def first_of_line(newest: str | pathlib.Path) -> str:
    """The model that a line of unlearned models began with: an absolute path, or a shipped model's name.

    Args:
      newest: the last model of the line, which may be the first, too.
    """
    path = shipped.resolved(str(newest))
    card = read_card(path) if path.is_dir() else {}
    return card.get("first_original", _lasting_name(newest))


def budget_reference(config: Config, newest: str | pathlib.Path, first: str) -> Params | None:
    """The model that a retain budget is relative to; None: the one that is unlearned.

    Args:
      config: the experiment.
      newest: the model that is unlearned.
      first: the first of its line.

    Raises:
      UserError: it is not there any more, or is another model.
    """
    given = config.unlearn.budget_original
    if not given and first == _lasting_name(newest):
        return None
    with barrier():
        try:
            return load_pretrained(shipped.resolved(given or first), config.family, config.model)
        except UserError as error:
            raise UserError(
                f"The retain budget is relative to {given or first}, the first original model: {error} Say "
                "where it is now with --config.unlearn.budget_original=PATH."
            ) from error


def _lasting_name(model: str | pathlib.Path) -> str:
    """What names the model from any folder."""
    return str(model) if str(model) in shipped.names() else str(pathlib.Path(model).absolute())
