"""The benchmark of feature networks: both sides compute the same, and what is printed is right."""

import numpy as np
import pytest

from benchmarks import features
from l2l_jax.errors import UserError


def test_pytorch_computes_what_its_reference_does():
    torch = pytest.importorskip("torch")
    from benchmarks.inception_torch import Inception
    from tests.evals.features.test_convolutional import filled
    from tests.reference_arrays import Case

    case = Case("inception_fid")
    state_dict = {key: torch.tensor(value) for key, value in filled(case, gain=True).items()}
    x = torch.nn.functional.interpolate(torch.tensor(case["x"]), (299, 299), mode="bilinear")
    with torch.inference_mode():
        found = Inception(state_dict).features(2 * x - 1)
    expected = case["gain/pool3"]
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


def test_other_features_are_noticed():
    sides = {"l2l_jax": lambda: np.ones((1, 4)), "PyTorch": lambda: np.array([[1, 1, 1, 1.01]])}
    with pytest.raises(UserError, match="PyTorch computes other features: they differ by 1.0e-02"):
        features.check(sides)
    features.check({"l2l_jax": sides["l2l_jax"], "PyTorch": sides["l2l_jax"]})


def test_figures_and_table():
    rows = {
        "l2l_jax": features.figures([(2.0, 4.0), (1.0, 2.0), (4.0, 3.0)], 8),
        "PyTorch": features.figures([(4.0, 8.0)], 8),
    }
    assert rows["l2l_jax"] == {"median": 4, "fastest": 8, "per_processor_second": 4}
    assert features.table(rows).splitlines()[2].split("|")[-2].strip() == "2.00"
