"""The model families by name."""

from l2l_jax.models.base import ImageToImageModel
from l2l_jax.models.mae import MAE

FAMILIES: dict[str, type[ImageToImageModel]] = {"mae": MAE}
"""Model classes by the name that `config.model.family` takes."""
