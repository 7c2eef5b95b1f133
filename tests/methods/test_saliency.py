"""Selection of the largest entries, compared with NumPy; masked objectives."""

import jax
import numpy as np
import pytest

from l2l_jax.methods.encoder import Encoder
from l2l_jax.methods.restrictions import largest, restrict
from l2l_jax.methods.undo import Undo
from tests.fixtures.linear import LINEAR, TEACHER

RNG = np.random.default_rng(0)
SCALES = {"a": 1e-20, "b": 1.0, "c": 1e10}
VALUES = {name: (scale * RNG.standard_normal((7, 11))).astype(np.float32) for name, scale in SCALES.items()}
"""Three arrays of very different sizes with a common threshold."""


@pytest.mark.parametrize("share", [1e-9, 0.1, 1 / 3, 0.5, 0.9, 1.0])
def test_largest_entries_of_all_arrays(share):
    result = largest(VALUES, share)
    magnitudes = sorted(np.abs(np.concatenate([x.ravel() for x in VALUES.values()])))
    count = max(1, round(share * len(magnitudes)))
    threshold = magnitudes[-count]
    for name, values in VALUES.items():
        np.testing.assert_array_equal(result[name], np.abs(values) >= threshold)
    assert sum(int(x.sum()) for x in result.values()) == count


def test_ties_are_selected_together_and_zeros_never():
    values = {"w": np.float32([0, -2, 1, 2, 0, 1])}
    two, four = [0, 1, 0, 1, 0, 0], [0, 1, 1, 1, 0, 1]
    for share, expected in ((1 / 6, two), (0.5, four), (1.0, four)):
        np.testing.assert_array_equal(largest(values, share)["w"], np.array(expected, bool))
    assert not largest({"w": np.zeros(4, np.float32)}, 0.5)["w"].any()


def test_saliency_options_of_all_methods():
    objective = restrict(Encoder().objective(LINEAR), LINEAR, 0.5, reset=True)
    assert objective.saliency == 0.5
    key = jax.random.key(1)
    fresh = Undo(perturb=1.0, perturb_encoder=1.0).objective(LINEAR).start(TEACHER, key)
    jax.tree.map(np.testing.assert_array_equal, objective.start(TEACHER, key), fresh)
    with pytest.raises(ValueError, match=r"saliency is 0; expected .*\(0, 1\]"):
        restrict(Encoder().objective(LINEAR), LINEAR, 0)
