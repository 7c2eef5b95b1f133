"""Model families behind one interface; importing them registers them."""

from l2l_jax.models.mae import model as mae
from l2l_jax.models.mage import model as mage
from l2l_jax.models.palette import model as palette

__all__ = ["mae", "mage", "palette"]
