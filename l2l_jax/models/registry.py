"""The model families by name."""

from l2l_jax.models.base import FAMILIES

VARIANTS = {name: dict(FAMILIES[name].VARIANTS) for name in FAMILIES}
