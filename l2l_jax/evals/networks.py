"""The networks that measure images, and the figures that are missing with those that are not there."""

from l2l_jax.evals.config import EvaluationConfig
from l2l_jax.evals.features.base import FeatureNetwork
from l2l_jax.evals.figures import figures_of


def open_all(config: EvaluationConfig) -> tuple[dict[str, FeatureNetwork], dict[str, str]]:
    """The published networks by name, and why other figures are not available, by name of the figure.

    Called by all processes.

    Raises:
      UserError: a file of weights that is named does not exist or cannot be read.
    """
    from l2l_jax.evals.features.networks import open_networks  # loads the networks' modules

    networks, missing = open_networks(config)
    return networks, {figure: why for name, why in missing.items() for figure in figures_of(name)}
