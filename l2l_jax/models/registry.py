"""The model families by name."""

from l2l_jax.models.base import Model
from l2l_jax.models.mae import model as mae
from l2l_jax.models.mae.model import MAE
from l2l_jax.models.mage import model as mage
from l2l_jax.models.mage.model import MAGE
from l2l_jax.models.palette.model import Palette

FAMILIES: dict[str, type[Model]] = {"mae": MAE, "mage": MAGE, "palette": Palette}
"""Model classes by the name that `config.model.family` takes."""

VARIANTS: dict[str, dict[str, dict]] = {"mae": mae.VARIANTS, "mage": mage.VARIANTS, "palette": {}}
"""Published sizes of each family by the name that `config.model.variant` takes; the published Palette is
the family's default."""
