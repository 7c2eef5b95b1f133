"""Networks of the reference cases, with the weights that the rule gives them."""

import jax
import numpy as np

from l2l_jax.evals.features import convolutions
from l2l_jax.models import mapping
from tests.reference_arrays import Case


def filled(case: Case, gain: bool) -> dict[str, np.ndarray]:
    """The state dict of a case; with `gain` its convolutions are √2 times as large, as in `gain/` arrays."""
    state_dict = case.state_dict()
    if gain:
        for key, value in state_dict.items():
            if value.ndim == 4:
                state_dict[key] = value * np.float32(np.sqrt(2))
    return state_dict


def joined_params(network, table, epsilon, state_dict, image_size):
    """Parameters of a network of convolutions with normalisation, from a state dict."""
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), np.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), image)["params"]
    target = convolutions.apart(shapes)
    params = convolutions.joined(mapping.to_flax(table, state_dict, target), epsilon)
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, shapes)
    return params
