# ruff: noqa: I001  (messages list the families in the order of their import)
"""Model families behind one interface; importing them registers them."""

from l2l_jax.models.mae import model as mae
from l2l_jax.models.mage import model as mage
from l2l_jax.models.palette import model as palette
from l2l_jax.models.latent_diffusion import model as latent_diffusion

__all__ = ["latent_diffusion", "mae", "mage", "palette"]
