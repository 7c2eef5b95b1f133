"""Model families behind one interface (`l2l_jax.models.base.Model`)."""
