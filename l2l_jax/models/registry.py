"""The model families by name."""

from l2l_jax.models import mae, mage
from l2l_jax.models.base import ImageToImageModel
from l2l_jax.models.mae import MAE
from l2l_jax.models.mage import MAGE
from l2l_jax.models.palette import Palette

FAMILIES: dict[str, type[ImageToImageModel]] = {"mae": MAE, "mage": MAGE, "palette": Palette}
"""Model classes by the name that `config.model.family` takes."""

VARIANTS: dict[str, dict[str, dict]] = {"mae": mae.VARIANTS, "mage": mage.VARIANTS, "palette": {}}
"""Published sizes of each family by the name that `config.model.variant` takes; the published Palette is
the family's default."""
