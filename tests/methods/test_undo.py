"""Where "undo" starts."""

import jax
import numpy as np
import pytest

from l2l_jax.methods.undo import Undo
from tests.matrix import soak
from tests.train.families import MODELS, params_of


@pytest.mark.parametrize("family", ["mae", *map(soak, ("mage", "palette", "latent_diffusion"))])
def test_undo_starts_between_the_original_and_fresh_weights(family):
    model, params = MODELS[family], params_of(MODELS[family])
    key = jax.random.key(3)

    @jax.jit
    def started():
        """Wholly fresh, half, and fresh but for the encoder."""
        shares = ((1.0, 1.0), (0.5, 0.5), (1.0, 0.0))
        found = [Undo(perturb=p, perturb_encoder=q).objective(model).start(params, key) for p, q in shares]
        for other in set(params).difference(model.generative_parts):
            assert all(made[other] is params[other] for made in found)
        return [{part: made[part] for part in model.generative_parts} for made in found]

    wholly, half, kept = jax.device_get(started())
    assert Undo(perturb=0.0, perturb_encoder=0.0).objective(model).start is None
    jax.tree.map(np.testing.assert_array_equal, kept["encoder"], params["encoder"])
    jax.tree.map(np.testing.assert_array_equal, kept["decoder"], wholly["decoder"])
    assert set(wholly) == set(model.generative_parts)
    for part in wholly:
        for name, (new, mixed, old) in enumerate(
            zip(*(jax.tree.leaves(x[part]) for x in (wholly, half, params)), strict=True)
        ):
            expected = 0.5 * np.asarray(old) + 0.5 * np.asarray(new)
            np.testing.assert_allclose(mixed, expected, atol=1e-6, err_msg=f"{part} {name}")
    assert any(
        np.abs(np.asarray(a) - np.asarray(b)).max() > 0.01
        for a, b in zip(jax.tree.leaves(wholly["encoder"]), jax.tree.leaves(params["encoder"]), strict=True)
    )
