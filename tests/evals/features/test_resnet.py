"""ResNet-50 of Places-365 against torchvision's (`resnet50_places`)."""

import jax
import numpy as np
import pytest

from l2l_jax.evals.features import resnet
from tests.evals.features.networks import filled, joined_params
from tests.reference_arrays import Case, nhwc

CASE = Case("resnet50_places")


@pytest.fixture(scope="module")
def outputs():
    network = resnet.ResNet50()
    apply = jax.jit(lambda p, x: network.apply({"params": p}, x, mutable=["intermediates"]))
    found = {}
    for gain in (False, True):
        state_dict = {key.removeprefix("module."): value for key, value in filled(CASE, gain).items()}
        params = joined_params(network, resnet.TABLE, resnet.NORM_EPSILON, state_dict, 64)
        found[gain] = apply(params, nhwc(CASE["x"]))
    return found


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("gain", [False, True])
def test_stages(outputs, gain):
    found, prefix = outputs[gain][1]["intermediates"], "gain/" * gain
    assert_close(found["maxpool"][0], nhwc(CASE[f"{prefix}maxpool"]))
    for stage in range(1, 5):
        assert_close(found[f"layer{stage}"][0].mean(axis=(1, 2)), CASE[f"{prefix}layer{stage}_mean"])


@pytest.mark.parametrize("gain", [False, True])
def test_features_and_logits(outputs, gain):
    (features, logits), prefix = outputs[gain][0], "gain/" * gain
    assert_close(features, CASE[f"{prefix}features"])
    assert_close(logits, CASE[f"{prefix}logits"])
